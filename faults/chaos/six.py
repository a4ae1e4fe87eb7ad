"""Six streams on two pools, and the engine of one is killed: six of six complete, and how soon.

Two forms. The mock engine lives in its pool manager, so the host is killed under three of six
running streams. The embedded engine in its deterministic profile has one slot, so two streams run
and four wait; its process is killed.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from faults import checker, history
from faults.chaos.clients import Client, Notes, Task
from faults.chaos.fleet import EXACT_MODEL, MOCK_MODEL, POLL_S, Fleet, HarnessError
from llamaorch_client import Sampling

STREAMS = 6
LIMIT_S = 60.0
TRIES_MAX = 200
TASKS = {
    MOCK_MODEL: Task(
        MOCK_MODEL,
        "six streams",
        Sampling(seed=7, engine_options={"mock": {"token_count": 150, "token_interval_ms": 10}}),
    ),
    EXACT_MODEL: Task(
        EXACT_MODEL, "Once upon a time", Sampling(seed=7, temperature=0.8, max_tokens=900)
    ),
}


@dataclass(frozen=True, slots=True)
class Six:
    """What came of it. `resume_ms`: from the kill to the next output, of each stream that ran."""

    engine: str
    completed: int
    resume_ms: tuple[int, ...]
    violations: tuple[checker.Violation, ...]
    wall_s: float

    @property
    def passed(self) -> bool:
        """True when all completed with the right bytes."""
        return self.completed == STREAMS and not self.violations

    def __str__(self) -> str:
        spans = ", ".join(f"{span} ms" for span in self.resume_ms) or "none had to"
        return (
            f"engine killed under {STREAMS} streams on 2 pools ({self.engine}): {self.completed} "
            f"of {STREAMS} complete, resumed after {spans}, {len(self.violations)} violations"
        )


async def six(directory: Path, engine: str) -> Six:
    """Runs one form. Raises `HarnessError` or TimeoutError when it cannot be run."""
    fleet = Fleet(directory, 2, engines=engine == EXACT_MODEL)
    notes, task = Notes(), TASKS[engine]
    started_s = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_S):
            await fleet.start()
            async with Client("reference", fleet.address, Notes()) as client:
                expected = await client.served(task)
                await _all_ready(client, engine)
            await _run(fleet, notes, task)
            await fleet.close()
    finally:
        fleet.kill_all()
    jobs = set(notes.tasks)
    expect = checker.Expect(texts=dict.fromkeys(jobs, expected), must_finish=jobs)
    return Six(
        engine,
        sum(notes.outcomes.get(job_id) == "FINISHED" for job_id in jobs),
        tuple(sorted(notes.resume_ms)),
        tuple(checker.check(history.merge(notes.events), expect)),
        time.monotonic() - started_s,
    )


async def _run(fleet: Fleet, notes: Notes, task: Task) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            group.create_task(_one(f"client-{number}", fleet.address, notes, task))
        pool_id = await _victim(notes, task)
        host = next(h for h in fleet.hosts if pool_id.startswith(f"{h.name}:"))
        if task.model_id == MOCK_MODEL:
            await host.kill()
            notes.fault(lambda pool: pool.startswith(f"{host.name}:"))
            await host.start()
        else:
            # The pool's process is the one of the two that works.
            busiest = max(host.engines(), key=lambda process: process.cpu_times().user)
            busiest.kill()
            notes.fault(lambda pool: pool == pool_id)


async def _one(name: str, address: str, notes: Notes, task: Task) -> None:
    async with Client(name, address, notes) as client:
        await client.run(task)


async def _victim(notes: Notes, task: Task) -> str:
    """A pool with running streams, once as many run as there are slots for them."""
    wanted = STREAMS if task.model_id == MOCK_MODEL else 2
    while True:
        running = [f.pool_id for f in notes.following.values() if f.running]
        if len(running) == wanted:
            return min(running)
        await asyncio.sleep(POLL_S)


async def _all_ready(client: Client, engine: str) -> None:
    for _ in range(TRIES_MAX):
        if await client.ready(engine) == 2:  # noqa: PLR2004 - both hosts
            return
        await asyncio.sleep(POLL_S * 10)
    raise HarnessError(f"not both pools of {engine} became ready")
