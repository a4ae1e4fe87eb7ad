"""The dispatchers we compare with: none of them uses the core.

LATE: one global queue in order of arrival; whenever a slot is free the head goes to a pool that
has one. ARRIVAL: a request is bound to a pool the moment it arrives and waits in that pool's own
queue, as behind a proxy in front of engines.
"""

import enum
import random
from collections import deque
from collections.abc import Callable, Sequence

from orchestrator_core.simulator.engine import INFINITY, Engine, StreamEvent
from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.results import JobLine, Run
from orchestrator_core.simulator.traces import Request


class Binding(enum.Enum):
    """When a request is bound to a pool."""

    LATE = "late"
    ARRIVAL = "arrival"


class Balancer:
    """What a rival knows: slots, busy slots, and requests that wait at each pool."""

    __slots__ = ("busy", "last", "queued", "rng", "slots")

    def __init__(self, slots: Sequence[int], seed: int) -> None:
        self.slots = tuple(slots)
        self.busy = [0] * len(self.slots)
        self.queued = [0] * len(self.slots)
        self.last = -1
        self.rng = random.Random(seed)  # noqa: S311 - a rival's dice, not a secret

    def outstanding(self, pool: int) -> int:
        """Requests that wait or run at a pool."""
        return self.busy[pool] + self.queued[pool]

    def rotated(self, pools: Sequence[int], key: Callable[[int], float]) -> int:
        """Returns the least pool; among equals the next one after the last choice."""
        count, last = len(self.slots), self.last
        return min(pools, key=lambda p: (key(p), (p - last - 1) % count))


Policy = Callable[[Balancer, Sequence[int]], int]


def _least_loaded(known: Balancer, pools: Sequence[int]) -> int:
    slots, busy = known.slots, known.busy
    return min(pools, key=lambda p: (busy[p] / slots[p], busy[p] - slots[p], p))


def _most_free(known: Balancer, pools: Sequence[int]) -> int:
    slots, busy = known.slots, known.busy
    return min(pools, key=lambda p: (busy[p] - slots[p], p))


def _round_robin(known: Balancer, pools: Sequence[int]) -> int:
    return known.rotated(pools, lambda _: 0.0)


def _random(known: Balancer, pools: Sequence[int]) -> int:
    return known.rng.choice(pools)


def _power_of_two(known: Balancer, pools: Sequence[int]) -> int:
    if len(pools) == 1:
        return pools[0]
    first, second = known.rng.sample(pools, 2)
    return first if known.outstanding(first) <= known.outstanding(second) else second


def _least_requests(known: Balancer, pools: Sequence[int]) -> int:
    return known.rotated(pools, known.outstanding)


def _least_requests_per_slot(known: Balancer, pools: Sequence[int]) -> int:
    return known.rotated(pools, lambda p: (known.outstanding(p) + 1) / known.slots[p])


POLICIES: dict[Binding, dict[str, Policy]] = {
    Binding.LATE: {
        "least_loaded": _least_loaded,
        "most_free": _most_free,
        "round_robin": _round_robin,
        "random": _random,
        "power_of_two": _power_of_two,
        "least_requests": _least_requests,
    },
    Binding.ARRIVAL: {
        "round_robin": _round_robin,
        "random": _random,
        "power_of_two": _power_of_two,
        "least_requests": _least_requests,
        "least_requests_per_slot": _least_requests_per_slot,
    },
}


class RivalRun:
    """Plays one trace through a rival. The dice are thrown from `seed`."""

    def __init__(
        self,
        fleet: Sequence[PoolSpec],
        requests: Sequence[Request],
        deadlines_ms: Sequence[int] | None,
        seed: int = 0,
    ) -> None:
        self._requests = requests
        self._engine = Engine(fleet)
        self._known = Balancer([spec.slots for spec in fleet], seed)
        self._lines = [JobLine(r.arrival_ms) for r in requests]
        for line, deadline_ms in zip(self._lines, deadlines_ms or (), strict=False):
            line.deadline_ms = deadline_ms
        # A job that is over before it got a slot keeps its place and is skipped there.
        self._due = sorted((due_ms, job) for job, due_ms in enumerate(deadlines_ms or ()))
        self._queue: deque[int] = deque()
        self._over: set[int] = set()
        self._own: tuple[deque[int], ...] = tuple(deque() for _ in fleet)

    def run(self, binding: Binding, policy: str) -> Run:
        """Returns what became of every job. Raises KeyError for a policy that is not known."""
        choose = POLICIES[binding][policy]
        engine, requests, due = self._engine, self._requests, self._due
        late = binding is Binding.LATE
        arrive = self._arrive_late if late else self._arrive_bound
        follow = self._follow_late if late else self._follow_bound
        arrived, total, passed, now_ms = 0, len(requests), 0, 0.0
        while True:
            engine_ms = engine.next_ms()
            arrival_ms = requests[arrived].arrival_ms if arrived < total else INFINITY
            deadline_ms = due[passed][0] if passed < len(due) else INFINITY
            at_ms = min(engine_ms, arrival_ms, deadline_ms)
            if at_ms == INFINITY:
                break
            freed = None
            if at_ms == engine_ms:
                freed = self._engine_event(at_ms)
            elif at_ms == deadline_ms:
                freed = self._expire(due[passed][1], at_ms, late=late)
                passed += 1
            else:
                arrive(arrived, choose, at_ms)
                arrived += 1
            if freed is not None:
                follow(freed, choose, at_ms)
            if at_ms != deadline_ms or freed is not None:
                now_ms = at_ms
        busy_ms = tuple(pool.busy_ms for pool in engine.pools)
        return Run(f"{binding.value}:{policy}", self._lines, busy_ms, now_ms)

    def _engine_event(self, now_ms: float) -> int | None:
        """Notes what the engine did; returns the pool that has a slot free by it."""
        happened = self._engine.pop()
        if happened is None:
            return None
        what, pool, job = happened
        if what is StreamEvent.FIRST_TOKEN:
            self._lines[job].first_ms = now_ms
            return None
        self._lines[job].end_ms = now_ms
        self._known.busy[pool] -= 1
        return pool

    def _expire(self, job: int, now_ms: float, *, late: bool) -> int | None:
        """Ends a job at its deadline, as the core does; returns the pool that it leaves."""
        line = self._lines[job]
        if line.end_ms is not None:
            return None
        if self._engine.running(job):
            pool = self._engine.stop(job, now_ms)
            self._known.busy[pool] -= 1
            return pool
        self._over.add(job)
        if not late and line.pool is not None:
            self._known.queued[line.pool] -= 1
        return None

    def _arrive_late(self, job: int, choose: Policy, now_ms: float) -> None:
        self._queue.append(job)
        self._place_waiting(choose, now_ms)

    def _follow_late(self, _: int, choose: Policy, now_ms: float) -> None:
        self._place_waiting(choose, now_ms)

    def _place_waiting(self, choose: Policy, now_ms: float) -> None:
        known = self._known
        while True:
            while self._queue and self._queue[0] in self._over:
                self._queue.popleft()
            if not self._queue:
                return
            free = [p for p, slots in enumerate(known.slots) if known.busy[p] < slots]
            if not free:
                return
            pool = known.last = choose(known, free)
            self._start(self._queue.popleft(), pool, now_ms)

    def _arrive_bound(self, job: int, choose: Policy, now_ms: float) -> None:
        known = self._known
        pool = known.last = choose(known, range(len(known.slots)))
        if known.busy[pool] < known.slots[pool]:
            self._start(job, pool, now_ms)
        else:
            known.queued[pool] += 1
            self._lines[job].pool = pool
            self._own[pool].append(job)

    def _follow_bound(self, pool: int, _: Policy, now_ms: float) -> None:
        waiting = self._own[pool]
        while waiting and waiting[0] in self._over:
            waiting.popleft()
        if waiting:
            self._known.queued[pool] -= 1
            self._start(waiting.popleft(), pool, now_ms)

    def _start(self, job: int, pool: int, now_ms: float) -> None:
        request, line = self._requests[job], self._lines[job]
        self._known.busy[pool] += 1
        line.pool, line.start_ms = pool, now_ms
        self._engine.start(pool, job, (request.prompt_tokens, request.output_tokens), now_ms)
