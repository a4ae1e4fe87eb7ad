"""What waits for its moment to kill or to replace a service."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Mine:
    """Kills who passes a point for the n-th time. `points` are those of one service."""

    points: Mapping[str, str]
    name: str
    passes: int
    down_ms: int
    notice_s: float


@dataclass(slots=True)
class Unsent:
    """Kills orchestratord at the point `name` once the n-th continuation is in the journal."""

    name: str
    continuations: int
    down_ms: int
    notice_s: float


@dataclass(frozen=True, slots=True)
class Takeover:
    """An orchestratord stops; after `begins_ms` another takes its journal over; then it goes on.

    It reaches the journal again `cut_off_ms` after that. If it is `trusting` it registers hosts
    that have seen a later epoch. Half of its connections break, which hosts and clients notice
    after `notice_s`; half of those to the other break when it goes on, and some then reach it.
    """

    stopped_ms: int
    begins_ms: int
    cut_off_ms: int
    trusting: bool
    notice_s: float


@dataclass(slots=True)
class Ended:
    """Ends an engine `after_ms` after the n-th attempt from now on ended at any."""

    attempts: int
    after_ms: int
