"""Scorers: what makes one candidate better than another. One protocol, chosen by configuration.

A scorer turns the predicted ends of all candidates into integer scores, the least being the best.
Equal scores go to the tie-breaks of `placement`. To add one: write it, and name it in `SCORES` and
in `config.Scorer`.
"""

from collections.abc import Mapping
from typing import Protocol

from orchestrator_core.core.config import Scorer
from orchestrator_core.core.spec import JobSpec

# Above every predicted end: what misses its target is worse than everything that meets it.
_MISSED_MS = 1 << 60
# A job is expected to meet its deadline where it would end in three quarters of the time left.
_TARGET_SHARE = (3, 4)


class Scores(Protocol):
    """Scores of candidates in the order of `ends_ms`, which are milliseconds from `now_ms`."""

    def __call__(self, ends_ms: list[int], spec: JobSpec, now_ms: int) -> list[int]:
        """Returns one score per candidate. O(candidates)."""
        ...


def predicted_end(ends_ms: list[int], spec: JobSpec, now_ms: int) -> list[int]:
    """The sooner a job ends, the better. LO-202."""
    return ends_ms


def off(ends_ms: list[int], spec: JobSpec, now_ms: int) -> list[int]:
    """Performance does not count: only load and memory do. ORCH-3012."""
    return [0] * len(ends_ms)


def latency_target(ends_ms: list[int], spec: JobSpec, now_ms: int) -> list[int]:
    """The slowest pool that still meets a job's deadline, which leaves faster ones to others.

    Where none meets it, and without a deadline, the soonest end.
    """
    if spec.deadline_ms is None:
        return ends_ms
    target_ms = (spec.deadline_ms - now_ms) * _TARGET_SHARE[0] // _TARGET_SHARE[1]
    return [target_ms - end if end <= target_ms else _MISSED_MS + end for end in ends_ms]


SCORES: Mapping[Scorer, Scores] = {
    Scorer.PREDICTED_END: predicted_end,
    Scorer.LATENCY_TARGET: latency_target,
    Scorer.OFF: off,
}
