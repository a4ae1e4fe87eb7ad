"""What the flight recorder costs: CPU per step, bytes per job, and the pause of a checkpoint.

    python -m benchmarks.recorder [--jobs 10000] [--pools 20]

Plays the life of jobs (enqueue, start, first output, two progress reports, end; a report of all
pools every 50 jobs) through a core, with and without the recorder, alternating, in one process.
CPU is the whole process's, the recorder's thread included; the loop's share is that of the thread
that steps.
"""

import argparse
import gc
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import run_on_machine
from orchestrator_core.core.checkpoint import JOBS_AT
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import ConfirmEnd
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptStarted,
    EndConfirmed,
    EnqueueRequested,
    Event,
    HostRegistered,
    OutputProgressed,
    SnapshotsReported,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.recorder.codec import encode_frozen
from orchestrator_core.recorder.recorder import RecordedCore, RecorderSettings, recordings

SLOTS = 4
REPORT_EVERY_JOBS = 50
CORE = CoreConfig(queue_capacity=100_000, finished_jobs_max=10_000, stale_after_ms=10_000_000)
# Steps are fed no faster than this, so that the writer keeps up as it does behind a network.
BURST_STEPS = 500
GIB = 1 << 30
WAITING = 5_000


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of one pass: of the thread that steps and of the process, in microseconds per step."""

    loop_us: float
    process_us: float


def snapshots(pools: int, version: int) -> tuple[PoolSnapshot, ...]:
    """Reports of idle pools."""
    return tuple(
        PoolSnapshot(
            pool_id=f"gpu-{index:04d}",
            replica_id=f"gpu-{index:04d}#1",
            host_id="host-1",
            version=version,
            model_id="llama-3-8b",
            engine="llama.cpp",
            engine_version="b4567",
            model_digest="sha256:0123456789abcdef",
            slots_total=SLOTS,
            slots_free=SLOTS,
            vram_total_bytes=24 * GIB,
            vram_free_bytes=12 * GIB,
            perf_tokens_per_s=40.0 + index,
        )
        for index in range(pools)
    )


def spec(number: int) -> JobSpec:
    """A job with a prompt of two kilobytes; its ids do not compress, as in life."""
    rng = random.Random(number)  # noqa: S311 - ids of a benchmark, not secrets
    trace, span = rng.randbytes(16).hex(), rng.randbytes(8).hex()
    return JobSpec(
        job_id=f"0193a7c2-7{rng.randbytes(2).hex()[1:]}-{rng.randbytes(8).hex()}",
        needs=Needs(model_id="llama-3-8b"),
        identity="anonymous",
        request_id=f"request-{number}",
        digest=rng.randbytes(32).hex(),
        payload=b"p" * 2_000,
        prompt_bytes=2_000,
        max_tokens=256,
        traceparent=f"00-{trace}-{span}-01",
        correlation_id=rng.randbytes(16).hex(),
    )


def lives(jobs: int, pools: int) -> Iterator[Event]:
    """Events of jobs that run one after the other on an idle fleet."""
    yield HostRegistered("host-1", 1, snapshots(pools, 1))
    for number in range(jobs):
        new = spec(number)
        yield EnqueueRequested(new, number)
        yield AttemptStarted(new.job_id, 1)
        for pieces in (1, 80, 160):
            yield OutputProgressed(new.job_id, 1, pieces)
        usage = Usage(tokens_in=500, tokens_out=200)
        yield AttemptEnded(new.job_id, 1, number + 1, finish=Finish.EOS, usage=usage)
        if number % REPORT_EVERY_JOBS == 0:
            report = snapshots(pools, number + 2)
            yield SnapshotsReported("host-1", report, number * 10)


def play(core: Core, events: Sequence[Event], *, pause_s: float) -> Cost:
    """Steps through all events; pauses, in which the writer works, cost the loop nothing."""
    loop_ns, process_ns = 0, time.process_time_ns()
    for start in range(0, len(events), BURST_STEPS):
        burst = events[start : start + BURST_STEPS]
        began_ns = time.thread_time_ns()
        for index, event in enumerate(burst, start=start):
            step(core, event, index)
        loop_ns += time.thread_time_ns() - began_ns
        time.sleep(pause_s)
    if isinstance(core, RecordedCore):
        core.recorder.flush(60.0)
    process_ns = time.process_time_ns() - process_ns
    return Cost(loop_ns / len(events) / 1000, process_ns / len(events) / 1000)


def step(core: Core, event: Event, now_ms: int) -> None:
    """One step; what it asks for is durable at once."""
    for effect in core.step(event, now_ms):
        if isinstance(effect, ConfirmEnd):
            core.step(EndConfirmed(effect.job_id), now_ms)


def measure(jobs: int, pools: int, directory: Path) -> tuple[list[Cost], list[Cost], int]:
    """Costs without and with the recorder, and the bytes that one recording took."""
    events = list(lives(jobs, pools))
    plain: list[Cost] = []
    recorded: list[Cost] = []
    size = 0
    for turn in range(3):
        gc.collect()
        plain.append(play(Core(CORE), events, pause_s=0.02))
        gc.collect()
        into = directory / str(turn)
        core = RecordedCore(CORE, RecorderSettings(into, turn, 1 << 30, 2))
        recorded.append(play(core, events, pause_s=0.02))
        core.end()
        core.recorder.join()
        size = sum(path.stat().st_size for path in recordings(into))
    return plain, recorded, size


def checkpoint_pause(pools: int) -> tuple[list[float], float, int]:
    """CPU milliseconds for which a checkpoint stops the loop, those of encoding it, its bytes."""
    core = Core(CORE)
    now_ms = 0
    for event in lives(CORE.idempotency_max, pools):
        now_ms += 1
        step(core, event, now_ms)
    for number in range(WAITING + pools * SLOTS):
        step(core, EnqueueRequested(spec(number + 1_000_000), 0), now_ms)
    assert core.queue_depth() == WAITING, core.queue_depth()
    pauses, frozen = [], core.freeze()
    for _ in range(5):
        gc.disable()  # as the recorder does
        began_s = time.thread_time()
        frozen = core.freeze()
        pauses.append((time.thread_time() - began_s) * 1000)
        gc.enable()
    jobs = len(frozen.tables[JOBS_AT])
    assert jobs == WAITING + pools * SLOTS + CORE.finished_jobs_max, jobs
    began_s = time.process_time()
    size = sum(map(len, encode_frozen(frozen)))
    return pauses, (time.process_time() - began_s) * 1000, size


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--pools", type=int, default=20)
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)
    with run_on_machine(), tempfile.TemporaryDirectory() as directory:
        plain, recorded, size = measure(arguments.jobs, arguments.pools, Path(directory))
        pauses, encode_ms, encoded = checkpoint_pause(arguments.pools)
    print(f"{arguments.jobs} jobs, {arguments.pools} pools; CPU in microseconds per step:")
    print(f"{'':24}{'loop thread':>14}{'process':>14}")
    for name, costs in (("without recorder", plain), ("with recorder", recorded)):
        loop_us = statistics.median(cost.loop_us for cost in costs)
        process_us = statistics.median(cost.process_us for cost in costs)
        print(f"{name:24}{loop_us:14.1f}{process_us:14.1f}")
    print(f"on disk: {size / arguments.jobs:.0f} bytes per job")
    print(
        f"checkpoint at {WAITING:,} waiting and {CORE.finished_jobs_max:,} ended jobs with "
        f"{CORE.idempotency_max:,} remembered requests: the loop stops for "
        f"{statistics.median(pauses):.0f} ms of CPU; the writer encodes {encoded / 1e6:.1f} MB "
        f"in {encode_ms:.0f} ms of CPU, in pieces"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
