"""In which order an orchestratord heard and said what of a pool: the orders that runs have met.

An order that no seed produces is one that no seed judges: tests hold seeds to those that matter.
Words beside the plain ones: `back anew`, a host registers with another engine there; `with ends`,
and with attempts that are over; `anew`, another engine in a report. Of an attempt of the engine
before, what comes later is `former`, or `overtaken` where a report told of the new engine.
"""

from collections import Counter
from collections.abc import Iterator
from typing import assert_never

from orchestrator_core.core.effects import Effect, SendCancel, SendDrain, SendRelease, SendStart
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptErrorKind,
    AttemptRefused,
    AttemptStarted,
    Event,
    HostLost,
    HostRegistered,
    OutputProgressed,
    SnapshotsReported,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish
from orchestrator_core.core.snapshot import PoolSnapshot

Pair = tuple[str, str]
"""Two words about one pool, one right after the other."""

Word = tuple[str, str]
"""A pool, and what is heard of it."""

_OF_ATTEMPTS = AttemptStarted | AttemptEnded | AttemptRefused | OutputProgressed


class Heard:
    """The words of one life of orchestratord, in pairs."""

    def __init__(self) -> None:
        self.pairs: Counter[Pair] = Counter()
        self._last: dict[str, str] = {}
        self._overtaking: set[str] = set()

    def step(self, core: Core, event: Event) -> None:
        """Takes what is heard, before the core does."""
        for pool_id, plain in _heard(core, event):
            word = plain
            if word == "anew":
                self._overtaking.add(pool_id)
            elif isinstance(event, HostRegistered):
                self._overtaking.discard(pool_id)
            if pool_id in self._overtaking:
                word = plain.replace("former", "overtaken")
            self._say(pool_id, word)

    def said(self, core: Core, effects: list[Effect]) -> None:
        """Takes what the core decided."""
        for effect in effects:
            match effect:
                case SendStart():
                    self._say(effect.pool_id, "start")
                case SendDrain():
                    self._say(effect.pool_id, "drain" if effect.left_ms is not None else "undrain")
                case SendCancel() | SendRelease():
                    word = "cancel" if isinstance(effect, SendCancel) else "release"
                    self._say(_pool_of(core, effect.job_id), word)
                case _:
                    pass

    def _say(self, pool_id: str, word: str) -> None:
        if pool_id:
            self.pairs[self._last.get(pool_id, "nothing"), word] += 1
            self._last[pool_id] = word


def _heard(core: Core, event: Event) -> Iterator[Word]:
    match event:
        case HostRegistered():
            yield from _of_registration(core, event)
        case HostLost():
            for pool_id, pool in core.pools.items():
                if pool.snapshot.host_id == event.host_id and pool.connected:
                    yield pool_id, "lost"
        case SnapshotsReported():
            yield from _of_report(core, event)
        case AttemptStarted() | AttemptEnded() | AttemptRefused() | OutputProgressed():
            yield from _of_attempt(core, event)
        case _:
            pass


def _of_registration(core: Core, event: HostRegistered) -> Iterator[Word]:
    over = {held.pool_id for held in event.held if held.ended}
    for snapshot in event.snapshots:
        word = "back anew" if _is_new(core, snapshot) else "back"
        yield snapshot.pool_id, word + " with ends" * (snapshot.pool_id in over)


def _of_report(core: Core, event: SnapshotsReported) -> Iterator[Word]:
    for snapshot in event.snapshots:
        known = core.pools.get(snapshot.pool_id)
        if known is not None and _is_new(core, snapshot):
            yield snapshot.pool_id, "anew"
        elif known is not None and known.snapshot.state is not snapshot.state:
            yield snapshot.pool_id, snapshot.state.name.lower()


def _is_new(core: Core, snapshot: PoolSnapshot) -> bool:
    known = core.pools.get(snapshot.pool_id)
    return known is not None and known.snapshot.replica_id != snapshot.replica_id


def _of_attempt(core: Core, event: _OF_ATTEMPTS) -> Iterator[Word]:
    job = core.jobs.get(event.job_id)
    attempt = job.attempt if job is not None else None
    if attempt is None or attempt.number != event.attempt:
        return
    pool = core.pools.get(attempt.pool_id)
    former = pool is not None and pool.snapshot.replica_id != attempt.replica_id
    yield attempt.pool_id, _word(event) + " former" * former


def _word(event: _OF_ATTEMPTS) -> str:
    match event:
        case AttemptStarted():
            return "started"
        case OutputProgressed():
            return "output"
        case AttemptRefused():
            return "refused"
        case AttemptEnded(error=None):
            return "stopped" if event.finish is Finish.CANCELLED else "finished"
        case AttemptEnded(error=error):
            died = error is not None and error.kind is AttemptErrorKind.ENGINE_DIED
            return "died" if died else "failed"
        case _:
            assert_never(event)


def _pool_of(core: Core, job_id: str) -> str:
    job = core.jobs.get(job_id)
    return job.attempt.pool_id if job is not None and job.attempt is not None else ""
