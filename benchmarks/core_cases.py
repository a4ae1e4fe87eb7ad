"""What the benchmark of the core plays: fleets, jobs, a closed loop of lives, and a bare peer."""

import heapq
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import ConfirmEnd, Effect, OfferDeclined, SendStart
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptStarted,
    EndConfirmed,
    EnqueueRequested,
    HostRegistered,
    OutputProgressed,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs, Priority

MODEL = "llama-3-8b"
SLOTS = 4
GIB = 1 << 30
PROMPT_BYTES = 2_000
POOLS_PER_HOST = 100
RUN_MS = 400
# So many arrivals make the core forget that the queue was filled at one instant.
WARM_UP_CYCLES = 200
# A long day: nothing goes stale or times out while the clock of a benchmark runs.
DAY_MS = 86_400_000
CONFIG = CoreConfig(
    queue_capacity=200_000,
    finished_jobs_max=1_000,
    idempotency_max=1_000,
    stale_after_ms=DAY_MS,
    queue_timeout_ms=DAY_MS,
    idle_timeout_ms=DAY_MS,
    wall_timeout_ms=DAY_MS,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """Jobs that share a lane."""

    needs: Needs = field(default_factory=lambda: Needs(MODEL))
    priority: Priority = Priority.INTERACTIVE


ONE_KIND = (Kind(),)
# Four needs that every pool meets, in two classes: eight lanes. Eight interactive jobs arrive for
# each batch job, which is how the classes take turns, so that no lane grows or runs dry.
EIGHT_LANES = tuple(
    Kind(Needs(MODEL, min_vram_bytes=size * GIB), priority)
    for size in (1, 2, 3, 4)
    for priority in (*[Priority.INTERACTIVE] * 8, Priority.BATCH)
)


@dataclass(frozen=True, slots=True)
class Load:
    """A case of the closed loop: `waiting` jobs before `pools` busy pools.

    With `slow_pool` one more pool, which everybody declines, has an idle slot. It pays to leave
    that idle only where demand is below what the others serve, so one cycle in
    `skip_every` then enqueues nothing and the queue gets shorter.
    """

    pools: int
    waiting: int
    kinds: Sequence[Kind] = ONE_KIND
    slow_pool: bool = False
    skip_every: int = 5
    slot_first: bool = False

    @property
    def slow_pool_id(self) -> str:
        """Id of the pool that everybody declines."""
        return snapshot(self.pools, MODEL, 1.0).pool_id


def snapshot(number: int, model_id: str, tokens_per_s: float) -> PoolSnapshot:
    """An idle pool. No two have the same rates."""
    return PoolSnapshot(
        pool_id=f"gpu-{number:05d}",
        replica_id=f"gpu-{number:05d}#1",
        host_id=f"host-{number // POOLS_PER_HOST}",
        version=1,
        model_id=model_id,
        engine="llama.cpp",
        slots_total=SLOTS,
        slots_free=SLOTS,
        vram_total_bytes=24 * GIB,
        vram_free_bytes=12 * GIB,
        perf_tokens_per_s=tokens_per_s * (1.0 + number * 7919 % 10_007 / 200_000),
        prefill_tokens_per_s=100_000.0 + number,
        first_token_ms=1,
        warm_session_ids=tuple(f"session-{number}-{index}" for index in range(8)),
    )


def hosts(snapshots: Sequence[PoolSnapshot]) -> Iterator[HostRegistered]:
    """The links of the hosts that these pools are on."""
    for start in range(0, len(snapshots), POOLS_PER_HOST):
        group = tuple(snapshots[start : start + POOLS_PER_HOST])
        yield HostRegistered(group[0].host_id, start + 1, group)


def idle_fleet(feasible: int, others: int = 0) -> Core:
    """A core with open pools; `others` serve another model."""
    core = Core(CONFIG)
    fleet = [snapshot(n, MODEL, 50.0) for n in range(feasible)]
    fleet += [snapshot(n, "other", 50.0) for n in range(feasible, feasible + others)]
    for event in hosts(fleet):
        core.step(event, 0)
    return core


def spec(number: int, kind: Kind = ONE_KIND[0]) -> JobSpec:
    """A job with a prompt of its own and ids of the usual length."""
    return JobSpec(
        job_id=f"0193a7c2-7abc-8def-{number:016d}",
        needs=kind.needs,
        priority=kind.priority,
        identity="anonymous",
        request_id=f"request-{number:016d}",
        digest=f"{number:064d}",
        payload=bytes(PROMPT_BYTES),
        prompt_bytes=PROMPT_BYTES,
        max_tokens=256,
        traceparent=f"00-{number:032d}-{number:016d}-01",
        correlation_id=f"{number:032d}",
    )


class Lives:
    """Jobs that live through a core, one after the other, with its queue as deep as it was.

    In a cycle one job arrives, the one that has run longest ends, and the job that takes its slot
    starts and writes. It lasts a millisecond, on a small fleet longer, so that a job runs for
    `RUN_MS` at least; the pools say as much of their speed.
    """

    def __init__(self, load: Load, config: CoreConfig = CONFIG) -> None:
        self.core = Core(config)
        self.now_ms = 0
        self.declined = 0
        self._load = load
        self._running: deque[tuple[str, int, int]] = deque()
        self._number = 0
        slots = load.pools * SLOTS
        self._cycle_ms = max(1, RUN_MS // slots)
        rate = 100.0 / (self._cycle_ms * slots / 1000.0)
        for event in hosts([snapshot(n, MODEL, rate) for n in range(load.pools)]):
            self._take(self.core.step(event, self.now_ms))
            for new in self.specs(SLOTS * len(event.snapshots)):
                self.now_ms += self._cycle_ms
                self.enqueue([new])
        self.enqueue(self.specs(load.waiting))
        self.play(max(WARM_UP_CYCLES, 2 * min(slots, 400)))
        if load.slow_pool:
            event = HostRegistered("slow", 0, (snapshot(load.pools, MODEL, 0.01),))
            self._take(self.core.step(event, self.now_ms))

    def specs(self, count: int) -> list[JobSpec]:
        """The next jobs to arrive."""
        first, kinds = self._number, self._load.kinds
        self._number += count
        return [spec(n, kinds[n % len(kinds)]) for n in range(first, first + count)]

    def enqueue(self, arriving: Sequence[JobSpec]) -> None:
        """Jobs arrive at one instant."""
        for new in arriving:
            self._take(self.core.step(EnqueueRequested(new, 0), self.now_ms))

    def play(self, cycles: int) -> int:
        """Plays lives; returns the nanoseconds of CPU that it took. Making jobs is not counted."""
        arriving, step, took = self.specs(cycles), self.core.step, self._take
        cycle_ms, slot_first = self._cycle_ms, self._load.slot_first
        skip = self._load.skip_every if self._load.slow_pool else cycles + 1
        began_ns = time.thread_time_ns()
        for index, new in enumerate(arriving, start=1):
            self.now_ms = now_ms = self.now_ms + cycle_ms
            if index % skip and not slot_first:
                took(step(EnqueueRequested(new, 0), now_ms))
            job_id, attempt, tokens = self._running.popleft()
            usage = Usage(tokens_in=PROMPT_BYTES // 4, tokens_out=tokens)
            ended = AttemptEnded(job_id, attempt, now_ms, finish=Finish.EOS, usage=usage)
            took(step(ended, now_ms))
            if slot_first:
                took(step(EnqueueRequested(new, 0), now_ms))
        return time.thread_time_ns() - began_ns

    def _take(self, effects: Sequence[Effect]) -> None:
        """Does what a pool does: whatever is sent to it starts and writes at once."""
        for effect in effects:
            if isinstance(effect, SendStart):
                job_id, attempt = effect.spec.job_id, effect.attempt
                self.core.step(AttemptStarted(job_id, attempt), self.now_ms)
                self.core.step(OutputProgressed(job_id, attempt, 1), self.now_ms)
                # Pools differ by a few percent, as those of one kind do.
                self._running.append((job_id, attempt, 96 + int(effect.pool_id[-2:]) % 9))
            elif isinstance(effect, ConfirmEnd):
                self.core.step(EndConfirmed(effect.job_id), self.now_ms)
            elif isinstance(effect, OfferDeclined):
                self.declined += 1


@dataclass(slots=True)
class BareJob:
    """What any dispatcher must know of a job."""

    job_id: str
    spec: JobSpec
    slot: int = -1


class BareDispatcher:
    """A FIFO of jobs before slots, the fastest free one first, and nothing else.

    It is the peer of the core: what the language itself takes for a dict, a deque and a heap.
    """

    def __init__(self, pools: int, waiting: int) -> None:
        self._jobs: dict[str, BareJob] = {}
        self._waiting: deque[BareJob] = deque()
        self._free = list(range(pools * SLOTS))
        self._running: deque[str] = deque()
        self._number = 0
        for new in self._specs(pools * SLOTS + waiting):
            self._enqueue(new)

    def play(self, cycles: int) -> int:
        """The lives that `Lives` plays; returns nanoseconds of CPU."""
        arriving = self._specs(cycles)
        began_ns = time.thread_time_ns()
        for new in arriving:
            self._enqueue(new)
            self._end(self._running.popleft())
        return time.thread_time_ns() - began_ns

    def _specs(self, count: int) -> list[JobSpec]:
        self._number += count
        return [spec(n) for n in range(self._number - count, self._number)]

    def _enqueue(self, new: JobSpec) -> None:
        job = self._jobs[new.job_id] = BareJob(new.job_id, new)
        self._waiting.append(job)
        self._dispatch()

    def _end(self, job_id: str) -> None:
        heapq.heappush(self._free, self._jobs.pop(job_id).slot)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._free and self._waiting:
            job = self._waiting.popleft()
            job.slot = heapq.heappop(self._free)
            self._running.append(job.job_id)
