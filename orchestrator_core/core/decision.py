"""The record of one placement. LO-207 builds on it."""

import enum
from dataclasses import dataclass
from typing import Final

from orchestrator_core.core.plain_init import plain_init

RULES_VERSION = 3
CANDIDATES_KEPT = 5
EXCLUSIONS_KEPT = 16
DECISIONS_KEPT = 16


class ExclusionReason(enum.Enum):
    """Why a pool could not take a job. Those before NOT_READY hold for an incarnation's life."""

    MODEL = "model"
    ENGINE = "engine"
    DEVICE_MASK = "device_mask"
    VRAM_TOTAL = "vram_total"
    QUANTIZATION = "quantization"
    COMPUTE_CAP = "compute_cap"
    EXTENSION = "extension"
    CONTEXT = "context"
    DETERMINISM = "determinism"
    KV_TOTAL = "kv_total"
    DEVICE_SHARE = "device_share"
    NOT_READY = "not_ready"
    STALE = "stale"
    NO_SLOT = "no_slot"
    KV_ROOM = "kv_room"
    RESERVED = "reserved"
    TRIED = "tried"
    DECLINED = "declined"


# Their sides are numbers of bytes.
BYTES: Final = frozenset(
    {
        ExclusionReason.VRAM_TOTAL,
        ExclusionReason.KV_TOTAL,
        ExclusionReason.KV_ROOM,
        ExclusionReason.DEVICE_SHARE,
    }
)
_GIB = 2**30


@plain_init
@dataclass(frozen=True, slots=True)
class Shortfall:
    """One thing that a pool lacks, with both sides as text."""

    reason: ExclusionReason
    required: str
    offered: str

    @property
    def sides(self) -> tuple[str, str]:
        """Both sides as people read them; memory that differs by little is told to the byte."""
        required, offered = self.required, self.offered
        if self.reason in BYTES and _gib(required) != _gib(offered):
            return _gib(required), _gib(offered)
        return required, offered


def _gib(text: str) -> str:
    """Bytes as GiB; what follows the number stays, and what is none too."""
    number, _, rest = text.partition(" ")
    return f"{int(number) / _GIB:.2f} GiB {rest}".rstrip() if number.isdecimal() else text


@plain_init
@dataclass(frozen=True, slots=True)
class Exclusion:
    """A pool that could not take the job, with every shortfall."""

    pool_id: str
    shortfalls: tuple[Shortfall, ...]


@plain_init
@dataclass(frozen=True, slots=True)
class Candidate:
    """A pool that could take the job. Times in milliseconds, memory in bytes.

    `tokens_per_s` includes `perf_scale`, the pool's factor for lowered clocks. `prompt_ms` is the
    part of `first_token_ms` that reading the uncached prompt takes.
    """

    pool_id: str
    replica_id: str
    predicted_end_ms: int
    first_token_ms: int
    decode_ms: int
    kv_warm: bool
    slots_free: int
    vram_headroom_bytes: int | None
    tokens_per_s: float
    snapshot_version: int
    snapshot_age_ms: int
    perf_scale: float = 1.0
    prompt_ms: int = 0


@plain_init
@dataclass(frozen=True, slots=True)
class Decision:
    """One placement: the winner first among the best candidates, and counts of all considered."""

    job_id: str
    attempt: int
    decided_ms: int
    pool_id: str
    decided_by: str
    candidates: tuple[Candidate, ...]
    candidates_total: int
    exclusions: tuple[Exclusion, ...]
    exclusions_total: int
    waited_ms: int
    declined_offers: int = 0
    rules_version: int = RULES_VERSION
