"""What a decision and the life of a job cost the core, in CPU time, beside a bare peer.

    python -m benchmarks.core [--rounds 5] [--cycles 2000] [--quick] [--strict]

CPU is that of the one thread that steps, the driver included, the making of jobs not. Every case
is warmed up and played several times: `best` is the least, `median` the middle of the rounds. The
collector of cyclic garbage runs as it does in production; `no gc` is the best without it. `x bare`
is the ratio to a bare peer that is played in turns: it carries over to another machine, which
microseconds do not.
"""

import argparse
import gc
import math
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.core_cases import (
    CONFIG,
    EIGHT_LANES,
    MODEL,
    PROMPT_BYTES,
    SLOTS,
    BareDispatcher,
    Lives,
    Load,
    idle_fleet,
    spec,
)
from benchmarks.machine import run_on_machine
from orchestrator_core.core import placement as core_module
from orchestrator_core.core.events import CancelRequested, EnqueueRequested
from orchestrator_core.core.job import Job, JobSpec
from orchestrator_core.core.machine import Core
from orchestrator_core.core.placement import Assigned, decision, place
from orchestrator_core.core.scheduler import _open_pools, placement_input
from orchestrator_core.core.session import Session
from orchestrator_core.core.state import State

# Bars of the design, section 11. A tenfold fleet may cost somewhat more than ten times as much: its
# tables no longer fit a processor's caches.
PLACEMENT_BARS_US = {(100, 0): 40.0, (1_000, 0): 400.0, (1_000, 9_000): 500.0}
CYCLES_PER_S_MIN = 10_000.0
FLAT_MAX = 1.3
TENFOLD_MAX = 12.0
QUEUED_BYTES_MAX = 6_000.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: fleets in pools, queues in jobs, the round in cycles."""

    fleets: tuple[int, ...] = (10, 100, 1_000, 10_000)
    queues: tuple[int, ...] = (0, 5_000, 100_000)
    waiting: int = 5_000
    pools: int = 100
    rounds: int = 5
    cycles: int = 2_000

    @property
    def others(self) -> int:
        """Pools of another model beside the second largest fleet, up to the largest."""
        return self.fleets[-1] - self.fleets[-2]


TINY = Sizes((2, 4, 8, 16), (0, 100, 200), 100, 4, 2, 20)


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of CPU per operation, at best also without the collector; ratio to the peer."""

    best_us: float
    median_us: float
    uncollected_us: float
    ratio: float


# Plays so many operations and returns the nanoseconds that they took.
Play = Callable[[int], int]
# Chooses so many waiting jobs and returns what does something to them all.
Prepare = Callable[[Lives, int], Callable[[], None]]


class Verdicts:
    """Figures beside their bars."""

    def __init__(self) -> None:
        self.missed = 0

    def judge(self, what: str, figure: float, bar: float, *, least: bool = False) -> None:
        """Prints whether a figure is at most its bar, or with `least` at least."""
        good = figure >= bar if least else figure <= bar
        self.missed += not good
        sign = ">=" if least else "<="
        print(f"  {'PASS' if good else 'FAIL'}  {what}: {figure:,.2f} (bar {sign} {bar:,.6g})")


def measure(play: Play, count: int, rounds: int, peer: Play | None = None) -> Cost:
    """Plays `count` operations to warm up, then in rounds, in turns with the peer's.

    `play` and `peer` return nanoseconds.
    """
    turns: dict[str, list[float]] = {"with": [], "peer": [], "without": []}

    def turn(kind: str, of: Play) -> None:
        turns[kind].append(of(count) / count / 1000)

    play(count)
    gc.collect()
    for _ in range(rounds):
        turn("with", play)
        turn("peer", peer or play)
        gc.disable()
        try:
            turn("without", play)
        finally:
            gc.enable()
    best = {kind: min(took_us) for kind, took_us in turns.items()}
    median_us = statistics.median(turns["with"])
    return Cost(best["with"], median_us, best["without"], best["with"] / best["peer"])


def repeated(call: Callable[[], object]) -> Play:
    """Plays one call again and again."""

    def play(count: int) -> int:
        began_ns = time.thread_time_ns()
        for _ in range(count):
            call()
        return time.thread_time_ns() - began_ns

    return play


def tenfold(costs: dict[int, Cost]) -> float:
    """Factor by which cost grows with ten times the size, by least squares in logarithms."""
    points = [(math.log10(size), math.log10(cost.best_us)) for size, cost in costs.items()]
    slope, _ = statistics.linear_regression(*zip(*points, strict=True))
    return float(10.0**slope)


def state_of(core: Core) -> State:
    """The tables behind a core: a decision alone is no step."""
    return core._state  # noqa: SLF001 - measures a part of the core from inside


# --- placement


def deciding(state: State, new: JobSpec, *, record: bool = False) -> Callable[[], object]:
    """One decision on the way that a round of offers takes, with its record or without."""
    job = Job(spec=new, seq=1, accepted_ms=0)

    def decide() -> object:
        request = placement_input(state, job, _open_pools(state, new.needs, 0), 0)
        placed = place(request)
        assert isinstance(placed, Assigned), placed
        return decision(request, placed) if record else placed

    return decide


def bare_minimum(pools: int) -> Callable[[], object]:
    """The peer of placement: the least of numbers that are known already."""
    ends = [float(n * 7919 % 10_007) for n in range(pools)]
    return lambda: min(range(pools), key=ends.__getitem__)


def placement(sizes: Sizes, verdicts: Verdicts) -> None:
    """Prints what a decision costs over fleets, and for jobs that need a closer look."""
    print("placement: one decision, all pools open, no two alike; microseconds of CPU")
    print(f"  {'feasible':>9}{'others':>8}  {'job':<24}{'best':>10}{'median':>10}{'x bare':>8}")
    fleets = [(n, 0) for n in sizes.fleets] + [(sizes.fleets[-2], sizes.others)]
    plain: dict[tuple[int, int], Cost] = {}
    for feasible, others in fleets:
        state = state_of(idle_fleet(feasible, others))
        known = Session("", "session-1-1", 0, 0)
        state.sessions.add(known)
        at_pool = state.pools["gpu-00001"].snapshot
        state.sessions.warm(known, at_pool.pool_id, at_pool.replica_id, 400, at_pool.slots_total)
        count = max(3, 20 * sizes.cycles // feasible)
        bare = repeated(bare_minimum(feasible))
        new = spec(0)
        session = replace(new, session_id="session-1-1", kv_reuse=True)
        cases = {
            "plain": deciding(state, new),
            "plain, with its record": deciding(state, new, record=True),
            "est_kv_bytes set": deciding(state, replace(new, est_kv_bytes=1 << 28)),
            "warm session": deciding(state, session),
        }
        for name, decide in cases.items():
            cost = measure(repeated(decide), count, sizes.rounds, bare)
            plain.setdefault((feasible, others), cost)
            print(
                f"  {feasible:9,}{others:8,}  {name:<24}{cost.best_us:10.1f}{cost.median_us:10.1f}"
                f"{cost.ratio:8.1f}"
            )
    for (feasible, others), bar in PLACEMENT_BARS_US.items():
        if (feasible, others) in plain:
            what = f"microseconds at {feasible:,} feasible of {feasible + others:,}"
            verdicts.judge(what, plain[feasible, others].best_us, bar)
    grown = {n: plain[n, 0] for n in sizes.fleets[1:]}
    verdicts.judge("growth with ten times the pools", tenfold(grown), TENFOLD_MAX)


# --- lives of jobs


def calls_in(play: Callable[[], object]) -> int:
    """Calls of functions, of Python and of C: a count that no other load disturbs."""
    calls = 0

    def count(_: object, what: str, __: object) -> None:
        nonlocal calls
        calls += what in ("call", "c_call")

    former = sys.getprofile()
    sys.setprofile(count)
    try:
        play()
    finally:
        sys.setprofile(former)
    return calls


def calls_per_cycle(lives: Lives, count: int) -> float:
    """Calls in the life of a job."""
    return calls_in(lambda: lives.play(count)) / count


def calls_per_operation(lives: Lives, prepare: Prepare, count: int) -> float:
    """Calls in one operation on a waiting job."""
    return calls_in(prepare(lives, count)) / count


def cycles(load: Load, name: str, sizes: Sizes) -> tuple[Cost, Lives]:
    """Prints what lives cost under one load; cancels and questions for a position too."""
    few = sizes.cycles // 10
    lives, bare = Lives(load), BareDispatcher(load.pools, load.waiting)
    # Few where cycles make the queue shorter.
    cost = measure(lives.play, few if load.slow_pool else sizes.cycles, sizes.rounds, bare.play)
    declined_before = lives.declined
    calls = calls_per_cycle(lives, few)
    declined = (lives.declined - declined_before) / few
    line = (
        f"  {load.pools:6,}{load.waiting:9,}  {name:<12}{cost.best_us:8.1f}{cost.median_us:8.1f}"
        f"{cost.uncollected_us:8.1f}{1e6 / cost.best_us:9,.0f}{cost.ratio:8.1f}"
        f"{calls:7.0f}{declined:9.2f}"
    )
    # A burst of arrivals would have the slow pool used, and at 0 nobody is there to be cancelled.
    if load.waiting and not load.slow_pool:
        cancel = measure(prepared(lives, cancels), few, sizes.rounds)
        position = measure(prepared(lives, positions), sizes.cycles, sizes.rounds)
        line += f"{cancel.best_us:8.1f}{position.best_us:9.1f}"
    print(line)
    assert not load.slow_pool or not lives.core.pools[load.slow_pool_id].busy, "it was used"
    return cost, lives


def waiting_jobs(lives: Lives, count: int) -> list[Job]:
    """So many different jobs from all over the queue."""
    waiting = [job for job in lives.core.jobs.values() if lives.core.position(job)]
    return [waiting[n * 7919 % len(waiting)] for n in range(count)]


def cancels(lives: Lives, count: int) -> Callable[[], None]:
    """Gets cancels of waiting jobs ready."""
    events = [CancelRequested(job.job_id, 0) for job in waiting_jobs(lives, count)]

    def run() -> None:
        for event in events:
            lives.core.step(event, lives.now_ms)

    return run


def positions(lives: Lives, count: int) -> Callable[[], None]:
    """Gets questions for the positions of waiting jobs ready."""
    jobs = waiting_jobs(lives, count)

    def run() -> None:
        for job in jobs:
            lives.core.position(job)

    return run


def prepared(lives: Lives, prepare: Prepare) -> Play:
    """Plays operations on waiting jobs, and fills the queue up again."""

    def play(count: int) -> int:
        run, depth = prepare(lives, count), lives.core.queue_depth()
        began_ns = time.thread_time_ns()
        run()
        took_ns = time.thread_time_ns() - began_ns
        lives.enqueue(lives.specs(depth - lives.core.queue_depth()))
        return took_ns

    return play


def core(sizes: Sizes, verdicts: Verdicts) -> None:
    """Prints what the life of a job costs over queues, fleets, lanes and declined offers."""
    print("\ncore: enqueue, placed, started, first output, ended; microseconds of CPU per job")
    print(
        f"  {'pools':>6}{'waiting':>9}  {'case':<12}{'best':>8}{'median':>8}{'no gc':>8}"
        f"{'per s':>9}{'x bare':>8}{'calls':>7}{'declined':>9}{'cancel':>8}{'position':>9}"
    )
    pools, waiting = sizes.pools, sizes.waiting
    cycles(Load(pools, 0, slot_first=True), "free slot", sizes)
    queues = {n: cycles(Load(pools, n), "queue", sizes) for n in sizes.queues}
    fleets = {
        n: (queues[waiting] if n == pools else cycles(Load(n, waiting), "fleet", sizes))[0]
        for n in sizes.fleets
    }
    for n in sizes.queues[1:]:
        cycles(Load(pools, n, EIGHT_LANES), "8 lanes", sizes)
        cycles(Load(pools, n, slow_pool=True), "all decline", sizes)
    what = f"cycles per second at {pools} pools and {waiting:,} waiting"
    verdicts.judge(what, 1e6 / queues[waiting][0].best_us, CYCLES_PER_S_MIN, least=True)
    deep = queues[sizes.queues[-1]][1]
    for n in sizes.queues[:-1]:
        # In turns, so that a busy neighbour slows both.
        flat = measure(deep.play, sizes.cycles, sizes.rounds, queues[n][1].play)
        verdicts.judge(f"cost at {sizes.queues[-1]:,} waiting over {n:,}", flat.ratio, FLAT_MAX)
    grown = {n: fleets[n] for n in sizes.fleets[1:]}
    verdicts.judge("growth with ten times the pools", tenfold(grown), TENFOLD_MAX)


# --- memory


def queued_bytes(pools: int, jobs: int) -> float:
    """Bytes that one more waiting job keeps alive, its prompt left out."""
    lives = Lives(Load(pools, jobs // 5), replace(CONFIG, idempotency_max=CONFIG.queue_capacity))
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for new in lives.specs(jobs):
            lives.core.step(EnqueueRequested(new, 0), lives.now_ms)
        del new
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / jobs - PROMPT_BYTES


def memory(sizes: Sizes, verdicts: Verdicts) -> None:
    """Prints what a waiting job keeps."""
    print(f"\nmemory: {sizes.waiting:,} more waiting jobs, request ids remembered")
    figure = queued_bytes(sizes.pools, sizes.waiting)
    verdicts.judge("bytes per waiting job, prompt left out", figure, QUEUED_BYTES_MAX)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; with --strict the exit code is 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=2_000)
    parser.add_argument("--quick", action="store_true", help="tiny numbers, to see that it works")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a bar is missed")
    chosen = parser.parse_args(arguments)
    sizes = TINY if chosen.quick else Sizes(rounds=chosen.rounds, cycles=chosen.cycles)
    given = sys.argv[1:] if arguments is None else arguments
    print(" ".join(["python -m benchmarks.core", *given]))
    form = "interpreted" if core_module.__file__.endswith(".py") else "compiled"
    print(
        f"{form} core, {MODEL}, {SLOTS} slots per pool; best and median of {sizes.rounds} rounds\n"
    )
    verdicts = Verdicts()
    with run_on_machine():
        placement(sizes, verdicts)
        core(sizes, verdicts)
        memory(sizes, verdicts)
    print(f"\n{verdicts.missed} bars missed" if verdicts.missed else "\nall bars met")
    return 1 if chosen.strict and verdicts.missed else 0


if __name__ == "__main__":
    sys.exit(main())
