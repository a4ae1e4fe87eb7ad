# SPDX-License-Identifier: Apache-2.0
"""The catalog of models as the client sees it (ORCH-3031, ORCH-3037)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from llamaorch_client.request import Requirements, refuse_text


class ModelState(StrEnum):
    """Whether jobs may be given to a model."""

    UNSPECIFIED = "UNSPECIFIED"
    ACTIVE = "ACTIVE"
    RETIRED = "RETIRED"


class DigestVerdict(StrEnum):
    """How what a pool reports compares with the catalog."""

    UNSPECIFIED = "UNSPECIFIED"
    MATCH = "MATCH"
    MISMATCH = "MISMATCH"
    UNKNOWN = "UNKNOWN"


class SignatureVerdict(StrEnum):
    """What became of checking a signature."""

    UNSPECIFIED = "UNSPECIFIED"
    VERIFIED = "VERIFIED"
    MISSING = "MISSING"
    UNCHECKED = "UNCHECKED"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDimensions:
    """What one sequence of a model keeps of its context; lengths in elements per head (LO-205)."""

    layers: int
    kv_heads: int
    key_length: int
    value_length: int
    window_layers: int = 0
    window_tokens: int = 0
    key_type: str = ""
    value_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """A model of the catalog; what is empty or None says nothing.

    From `state` on it is what the server says; in an update `revision` is the one to be changed,
    0 whatever there is. `closed`: the grace is over, pools serve it no more.
    """

    model_id: str
    aliases: tuple[str, ...] = ()
    model_ref: str = ""
    digest: str = ""
    signature: str = ""
    engines: tuple[str, ...] = ()
    engine_version: str = ""
    sampler_profile_version: str = ""
    ctx_max: int | None = None
    dimensions: ModelDimensions | None = None
    requirements: Requirements | None = None
    bytes_per_token: float | None = None
    expected_tokens: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    state: ModelState = ModelState.UNSPECIFIED
    retired_at: datetime | None = None
    grace_until: datetime | None = None
    closed: bool = False
    replaced_by: str = ""
    revision: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None

    def __post_init__(self) -> None:
        refuse_text(self, "aliases", "engines")


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model as it is kept now, and sentences about what is missing or does not fit."""

    model: CatalogModel
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PoolVerdict:
    """The verdict about one pool that serves a model."""

    pool_id: str
    engine: str
    reported_digest: str
    verdict: DigestVerdict


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found when a model was verified; `signed_by` names the trusted key."""

    model_id: str
    digest: str
    pools: tuple[PoolVerdict, ...]
    signature: SignatureVerdict
    signed_by: str
    verified: bool
    warnings: tuple[str, ...]
