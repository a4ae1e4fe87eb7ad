"""The words in which it is said why a job waits. LO-207."""

import enum
from collections.abc import Mapping, Sequence

from orchestrator_core.core.decision import ExclusionReason, Shortfall

POOLS_NAMED = 3
DETAILS_TOLD = 4
DETAIL_CHARS_MAX = 200
_MS_PER_S, _S_PER_MIN, _MIN_PER_H = 1_000, 60, 60


class Obstacle(enum.Enum):
    """What keeps a pool from a waiting job, the nearest to being over first."""

    DECLINED = "slower than one worth waiting for"
    RESERVED = "kept for an older job"
    ROOM = "with too little free memory"
    BUSY = "without a free slot"
    CLOSED = "that refused it a moment ago"
    STARTING = "starting"
    STALE = "not heard of for too long"
    UNCONFIRMED = "stuck with a job that was to be stopped"
    TRIED = "on which it failed before"
    DRAINED = "drained by an operator"
    DRAINING = "draining"
    UNREADY = "not ready"
    AWAY = "on a host that is not connected"
    RETIRED = "closed, as the model is retired"
    OTHER_SET = "of another replica set"
    LACKS = "that cannot serve it"
    OTHER_MODEL = "with another model"


SHORT = {
    Obstacle.BUSY: "Every slot that it could use is taken",
    Obstacle.ROOM: "The memory that it needs is in use by other jobs",
    Obstacle.RESERVED: "What it could use is kept for an older job",
    Obstacle.DECLINED: "A slot is free, but waiting for a faster pool should end it sooner",
    Obstacle.CLOSED: "A pool that could serve it refused it, and is asked again in a moment",
    Obstacle.STARTING: "A pool that could serve it is starting",
    Obstacle.STALE: "What could serve it has not been heard of for too long",
    Obstacle.UNCONFIRMED: "What could serve it does not confirm that it stopped another job",
    Obstacle.TRIED: "It failed on every pool that could take it",
    Obstacle.DRAINED: "What could serve it is drained by an operator",
    Obstacle.DRAINING: "What could serve it is draining",
    Obstacle.UNREADY: "No pool that could serve it is ready",
    Obstacle.AWAY: "No host that could serve it is connected",
    Obstacle.RETIRED: "Its model is retired",
    Obstacle.OTHER_SET: "No pool is registered on which it could go on byte for byte",
    Obstacle.LACKS: "No registered pool can serve it any more",
    Obstacle.OTHER_MODEL: "No registered pool has its model any more",
}


# What would help; with nothing here only waiting does.
REMEDIES = {
    Obstacle.BUSY: "another pool of {model}, or more slots",
    Obstacle.ROOM: "jobs that end there make room; a job with a shorter context needs less",
    Obstacle.DECLINED: "after {longest} (placement.decline_max_ms) it takes what is free",
    Obstacle.STALE: "look at pool-managerd at {hosts}, and at the network between",
    Obstacle.UNCONFIRMED: "look at the log of pool-managerd at {hosts}",
    Obstacle.TRIED: "another pool of {model}",
    Obstacle.DRAINED: "{undrain} lets it take work again",
    Obstacle.UNREADY: "mend what the reason says (`llorch pools` has it in full); a pool that"
    " gave up is started again by `systemctl reload pool-managerd` at {hosts}",
    Obstacle.AWAY: "bring {hosts} back: `systemctl status pool-managerd` there says what is wrong",
    Obstacle.RETIRED: "`llorch models activate {model}` opens the model again",
    Obstacle.OTHER_SET: "a pool with the engine, version and weights that it began on",
    Obstacle.LACKS: "a pool that has it, or a job that asks for less",
    Obstacle.OTHER_MODEL: "a pool of {model}",
}


_WHAT = {
    ExclusionReason.MODEL: "the model's digest",
    ExclusionReason.ENGINE: "engine",
    ExclusionReason.DEVICE_MASK: "devices",
    ExclusionReason.VRAM_TOTAL: "memory of its devices",
    ExclusionReason.QUANTIZATION: "quantization",
    ExclusionReason.COMPUTE_CAP: "compute capability",
    ExclusionReason.EXTENSION: "extension",
    ExclusionReason.CONTEXT: "tokens of context",
    ExclusionReason.DETERMINISM: "determinism",
    ExclusionReason.KV_TOTAL: "memory for keys and values",
    ExclusionReason.DEVICE_SHARE: "memory for the share of one device",
    ExclusionReason.KV_ROOM: "free memory for keys and values",
}


def lack(shortfall: Shortfall) -> str:
    """What a pool lacks, with both sides."""
    what = _WHAT.get(shortfall.reason, shortfall.reason.value)
    required, offered = shortfall.sides
    return f"{what}: needs {required}, has {offered or 'none'}"


def details(by_detail: Mapping[str, Sequence[str]]) -> str:
    """Which pools, by what is said of them: what most have in common first."""
    ordered = sorted(by_detail.items(), key=lambda item: -len(item[1]))
    told = [
        f"{named(ids)} ({detail})" if detail else named(ids)
        for detail, ids in ordered[:DETAILS_TOLD]
    ]
    rest = ordered[DETAILS_TOLD:]
    if rest:
        pools = sum(len(ids) for _, ids in rest)
        told.append(f"and {pools} more for {len(rest)} other reasons")
    return "; ".join(told)


def cut(detail: str) -> str:
    """What a host says at length, in short: the page of its pool has all of it."""
    return detail if len(detail) <= DETAIL_CHARS_MAX else f"{detail[: DETAIL_CHARS_MAX - 1]}…"


def named(ids: Sequence[str]) -> str:
    """The first of these names, and how many more."""
    more = len(ids) - POOLS_NAMED
    # One more takes no more room than its name.
    if more <= 1:
        return ", ".join(ids)
    return f"{', '.join(ids[:POOLS_NAMED])} and {more} more"


def span(span_ms: int) -> str:
    """A span of time, as in 250 ms, 1.5 s, 12 min, 8 h."""
    if span_ms < _MS_PER_S:
        return f"{max(0, span_ms)} ms"
    seconds = span_ms / _MS_PER_S
    if seconds < _S_PER_MIN:
        return f"{seconds:.1f} s"
    minutes = round(seconds / _S_PER_MIN)
    return f"{minutes} min" if minutes < _MIN_PER_H else f"{round(minutes / _MIN_PER_H)} h"
