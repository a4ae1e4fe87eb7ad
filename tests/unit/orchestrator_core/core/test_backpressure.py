"""Stability at the edge: a full queue with arrivals and departures. ORCH-3017, LO-101."""

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from orchestrator_core.core.config import QueuePolicy
from orchestrator_core.core.effects import ReplyAccepted, ReplyRefused
from orchestrator_core.core.records import DispatchRecord
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.settings import STEADY

WARM_UP = 20


@dataclass
class Edge:
    """One slot that serves a job every `gap_ms`, and clients who come back when they are told."""

    gap_ms: int
    capacity: int
    bench: Bench = field(init=False)
    told_ms: list[int] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bench = Bench(
            wide(slots=1),
            queue_capacity=self.capacity,
            retry_after_min_ms=1,
            retry_after_max_ms=1_000_000,
            stale_after_ms=10**9,
            idle_timeout_ms=10**9,
            wall_timeout_ms=10**9,
            queue_timeout_ms=10**9,
        )
        self._events: list[tuple[int, int, str, str]] = []
        self._count = 0

    def at(self, now_ms: int, what: str, job_id: str) -> None:
        """Something will happen."""
        self._count += 1
        heapq.heappush(self._events, (now_ms, self._count, what, job_id))

    def play(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            now_ms, _, what, job_id = heapq.heappop(self._events)
            self.bench.now_ms = now_ms
            if what == "end":
                self._note(self.bench.end(job_id), now_ms)
            else:
                self._arrive(job_id, now_ms)

    def _arrive(self, job_id: str, now_ms: int) -> None:
        before = len(self.bench.state.queue)
        self.tries[job_id] = self.tries.get(job_id, 0) + 1
        effects = self.bench.enqueue(job_id)
        accepted = bool(only(effects, ReplyAccepted))
        assert accepted == (before < self.capacity), "accepted exactly when a place is free"
        for reply in only(effects, ReplyRefused):
            wait_ms = reply.refusal.retry_after_ms
            assert wait_ms is not None
            assert 1 <= wait_ms <= 1_000_000
            self.told_ms.append(wait_ms)
            self.at(now_ms + wait_ms, "arrive", job_id)
        self._note(effects, now_ms)

    def _note(self, effects: list[object], now_ms: int) -> None:
        for placed in only(effects, DispatchRecord):  # type: ignore[arg-type]
            self.at(now_ms + self.gap_ms, "end", placed.job_id)


def steady(gap_ms: int, capacity: int) -> tuple[Edge, int]:
    """A queue that has been full for a while, kept so by one arrival after each departure."""
    edge = Edge(gap_ms, capacity)
    for n in range(capacity + 1):
        edge.at(0, "arrive", f"first {n}")
    for n in range(1, WARM_UP):
        edge.at(n * gap_ms + 1, "arrive", f"next {n}")
    return edge, (WARM_UP - 1) * gap_ms + 2


@settings(STEADY, max_examples=25, phases=(Phase.generate,))
@given(st.integers(3, 400), st.integers(2, 12), st.integers(1, 30), st.integers(0, 399))
def test_clients_who_come_back_as_told_are_let_in_at_once(
    gap_ms: int, capacity: int, clients: int, phase_ms: int
) -> None:
    """However many are rejected in one instant, each finds a place at its second try."""
    edge, now_ms = steady(gap_ms, capacity)
    for n in range(clients):
        edge.at(now_ms + phase_ms % (gap_ms - 2), "arrive", f"late {n}")

    edge.play()

    assert len(edge.told_ms) == clients, "all were rejected once, and nobody twice"
    late = [tries for job_id, tries in edge.tries.items() if job_id.startswith("late")]
    assert late == [2] * clients
    assert edge.told_ms == [gap_ms * (n + 1) for n in range(clients)]


@pytest.mark.parametrize("seed", range(8))
def test_at_full_load_nobody_is_sent_away_again_and_again(seed: int) -> None:
    """Arrivals at just below the rate of departures, at random times: two tries are enough."""
    rng = random.Random(seed)  # noqa: S311 - a test case, not a secret
    gap_ms, capacity = rng.randint(20, 400), rng.randint(2, 12)
    edge, now_ms = steady(gap_ms, capacity)
    for n in range(200):
        now_ms += rng.randint(1, 2 * gap_ms + gap_ms // 5)
        edge.at(now_ms, "arrive", f"late {n}")

    edge.play()

    tries = [count for job_id, count in edge.tries.items() if job_id.startswith("late")]
    assert len(tries) == 200
    assert sum(tries) <= 2 * len(tries)
    assert max(tries) <= 12


@pytest.mark.parametrize("policy", [QueuePolicy.REJECT, QueuePolicy.DROP_LRU])
def test_a_displaced_job_does_not_make_the_drain_look_faster(policy: QueuePolicy) -> None:
    """Its place was taken at once, so nobody else should come for it."""
    bench = Bench(wide(slots=1), queue_capacity=4, queue_policy=policy, retry_after_min_ms=1)
    bench.enqueue("a", "b", "c", "d", "e")
    for n, job_id in enumerate("abc", start=1):
        bench.at(1_000 * n)
        bench.end(job_id)
    bench.enqueue("f", "g", "h")
    for n in range(20):
        bench.at(bench.now_ms + 10)
        bench.enqueue(f"flood {n}")

    gap_ms = bench.state.drain.gap_ms(bench.now_ms)

    assert gap_ms == 1_000


def test_jobs_that_never_waited_do_not_make_the_drain_look_faster() -> None:
    """Passing through an empty queue frees no place."""
    bench = Bench(wide(slots=2), queue_capacity=4)
    for n in range(30):
        bench.enqueue(f"quick {n}")
        bench.end(f"quick {n}")

    assert bench.state.drain.gap_ms(bench.now_ms) is None


def test_before_any_departure_the_predicted_start_of_the_next_stands_in() -> None:
    """Of the first in the queue, not of the last: one place is enough."""
    bench = Bench(wide(slots=1), queue_capacity=9, retry_after_max_ms=10**9)
    bench.enqueue(*(f"j{n}" for n in range(10)))
    own_ms = bench.core.jobs["j0"].predicted_end_ms or 0

    (reply,) = only(bench.enqueue("late"), ReplyRefused)

    assert reply.refusal.retry_after_ms is not None
    assert reply.refusal.retry_after_ms <= 2 * own_ms


def test_under_fail_fast_every_caller_is_told_the_same() -> None:
    """Nobody waits for a place there, so none is promised."""
    bench = Bench(wide(slots=1), queue_policy=QueuePolicy.FAIL_FAST)
    bench.enqueue("running")

    replies = only(bench.enqueue("a", "b", "c"), ReplyRefused)

    assert len({reply.refusal.retry_after_ms for reply in replies}) == 1
