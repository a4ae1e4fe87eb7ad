"""A core with a host on it, for tests of one behaviour."""

from collections.abc import Sequence
from typing import Any, TypeVar

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import ConfirmEnd, Effect, ReplyAccepted, ReplyRefused
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptError,
    AttemptErrorKind,
    AttemptStarted,
    EndConfirmed,
    EnqueueRequested,
    Event,
    HeldAttempt,
    HostRegistered,
    SnapshotsReported,
    Tick,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Refusal, Usage
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.state import State
from orchestrator_core.core.timers import TimerKind
from tests.unit.orchestrator_core.core.build import snapshot, spec

E = TypeVar("E")


class Bench:
    """Keeps the clock and says the common things shortly."""

    def __init__(self, *pools: PoolSnapshot, **config: Any) -> None:
        self.core = Core(CoreConfig(**config))
        self.now_ms = 0
        self._links = 0
        if pools:
            self.register(*pools)

    @property
    def state(self) -> State:
        """The tables."""
        return self.core._state

    def step(self, event: Event, now_ms: int | None = None) -> list[Effect]:
        """One step, at once or at a later time; ends whose retention is over are durable."""
        self.now_ms = self.now_ms if now_ms is None else now_ms
        effects = self.core.step(event, self.now_ms)
        for asked in only(effects, ConfirmEnd):
            if self.state.timers.is_set(TimerKind.FORGET, asked.job_id):
                continue
            effects += self.core.step(EndConfirmed(asked.job_id), self.now_ms)
        return effects

    def at(self, now_ms: int) -> list[Effect]:
        """Lets time pass."""
        return self.step(Tick(), now_ms)

    def register(
        self,
        *pools: PoolSnapshot,
        host: str = "h",
        held: Sequence[HeldAttempt] = (),
        held_attempts_max: int = 0,
        boot_id: str = "",
    ) -> list[Effect]:
        """A host opens a link."""
        self._links += 1
        return self.step(
            HostRegistered(host, self._links, pools, tuple(held), held_attempts_max, boot_id)
        )

    def report(self, *pools: PoolSnapshot, as_of_ms: int | None = None) -> list[Effect]:
        """The host of the pools reports."""
        as_of_ms = self.now_ms if as_of_ms is None else as_of_ms
        return self.step(SnapshotsReported(pools[0].host_id, pools, as_of_ms))

    def enqueue(self, *job_ids: str, **fields: Any) -> list[Effect]:
        """Jobs arrive, all alike."""
        return [
            effect
            for job_id in job_ids
            for effect in self.step(EnqueueRequested(spec(job_id, **fields), 0))
        ]

    def end(self, job_id: str, attempt: int = 1, **fields: Any) -> list[Effect]:
        """An attempt ends well."""
        usage = fields.pop("usage", Usage(tokens_in=1, tokens_out=2))
        return self.step(AttemptEnded(job_id, attempt, 1, finish=Finish.EOS, usage=usage))

    def fail(self, job_id: str, kind: AttemptErrorKind, attempt: int = 1) -> list[Effect]:
        """An attempt ends with an error."""
        return self.step(AttemptEnded(job_id, attempt, 1, error=AttemptError(kind, "it broke")))


def only(effects: list[Effect], kind: type[E]) -> list[E]:
    """The effects of one kind, in order."""
    return [effect for effect in effects if isinstance(effect, kind)]


def wide(pool_id: str = "p", slots: int = 8, **fields: Any) -> PoolSnapshot:
    """A pool with several free slots."""
    return snapshot(pool_id, slots_total=slots, slots_free=slots, **fields)


def refusal(effects: list[Effect]) -> Refusal:
    """Why the one request was refused."""
    (reply,) = only(effects, ReplyRefused)
    return reply.refusal


def let_in(effects: list[Effect]) -> bool:
    """The one request was accepted."""
    return bool(only(effects, ReplyAccepted))


def learned(bench: Bench, jobs: int) -> None:
    """Jobs that each take a second, one after the other."""
    for n in range(jobs):
        name = f"earlier {n}"
        bench.enqueue(name)
        bench.step(AttemptStarted(name, 1))
        bench.at(bench.now_ms + 1_000)
        bench.end(name)


def session_bench() -> Bench:
    """Two equal pools of one slot; session `s` was served on the first, which is busy again."""
    speed = {"prefill_tokens_per_s": 100.0}
    bench = Bench(snapshot("a", **speed), snapshot("b", slots_free=0, **speed))
    turn = {"session_id": "s", "kv_reuse": True, "prompt_bytes": 40_000, "expected_tokens": 10}
    bench.enqueue("first", **turn)
    bench.now_ms = 1_000
    bench.end("first", usage=Usage(tokens_in=10_000, tokens_out=10))
    bench.enqueue("other", expected_tokens=20)
    bench.report(snapshot("b", version=2, **speed))
    return bench
