"""One campaign: clients run jobs while every process is killed and stopped; then all is judged."""

import asyncio
import random
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import orchestrator_core.failpoints
import pool_managerd.failpoints
from faults import checker, history
from faults.chaos.archivist import Archivist
from faults.chaos.clients import Client, Notes, Task, now_ms
from faults.chaos.fleet import (
    EXACT_MODEL,
    FREE_MODEL,
    MOCK_MODEL,
    Fleet,
    HarnessError,
)
from faults.chaos.injector import Done, Injector
from faults.chaos.observers import host_events, journal_events
from llamaorch_client import FailoverPolicy, Sampling

REFERENCE_TIMEOUT_S = 120.0
# Share of a campaign's time in which faults happen. The rest is many times what any job needs on
# services that nobody disturbs: what is unended at the limit was lost.
FAULTS_SHARE = 0.75
VARIANTS = 6
CLIENTS_OF_OTHERS = 2


@dataclass(frozen=True, slots=True)
class Options:
    """Size of a campaign.

    `points` False: random moments alone. `kinds_first`: begins with a kill of each kind of process,
    and goes on until they were. `overlap`: so many faults at a time. `limit_s` bounds all; faults
    end before, see `FAULTS_SHARE`.
    """

    seed: int = 1
    clients: int = 8
    jobs: int = 100
    hosts: int = 2
    engines: bool = True
    points: bool = True
    kinds_first: bool = False
    overlap: int = 1
    limit_s: float = 1_200.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a campaign."""

    options: Options
    faults: Done
    notes: Notes
    expected: Collection[str]
    violations: list[checker.Violation]
    problems: list[str]
    history: history.History
    wall_s: float

    @property
    def passed(self) -> bool:
        """True when nothing was lost and no promise broken."""
        return not (self.violations or self.problems)


class Campaign:
    """Runs one campaign in a directory."""

    def __init__(self, options: Options, directory: Path) -> None:
        self._options = options
        self._fleet = Fleet(directory, options.hosts, engines=options.engines)
        self._notes = Notes()
        self._texts: dict[Task, str] = {}
        self._injector = Injector(self._fleet, self._notes, options.seed, self._points())
        if options.kinds_first:
            self._injector.kinds_first()
        self._archivist = Archivist(options.seed)
        self._problems: list[str] = []

    async def run(self) -> Result:
        """All of it. What goes wrong is in the result; no process is left behind."""
        started_s = time.monotonic()
        problems = self._problems
        try:
            async with asyncio.timeout(self._options.limit_s):
                await self._fleet.start()
                await self._reference()
                took_s = time.monotonic() - started_s
                await self._chaos(self._options.limit_s * FAULTS_SHARE - took_s)
                codes = await self._fleet.close()
            if any(codes):
                problems.append(f"exit codes after a drain: {codes}")
        except TimeoutError:
            problems.append(f"not done within {self._options.limit_s:.0f} s")
        except HarnessError as error:
            problems.append(str(error))
        except ExceptionGroup as group:
            problems.extend(f"{type(error).__name__}: {error}" for error in group.exceptions)
        finally:
            self._fleet.kill_all()
        return self._judged(time.monotonic() - started_s)

    # --- load

    async def _reference(self) -> None:
        """What undisturbed engines answer to each task that has one answer."""
        notes = Notes()
        async with (
            asyncio.timeout(REFERENCE_TIMEOUT_S),
            Client("reference", self._fleet.address, notes) as client,
        ):
            for task in tasks(engines=self._options.engines):
                # A pool that has not loaded its model yet cannot serve it: that is no fault here.
                self._texts[task] = await client.served(task)

    async def _chaos(self, faults_s: float) -> None:
        """Runs all jobs; faults happen for `faults_s` at most, then the jobs run to their end."""
        options, injector = self._options, self._injector
        async with asyncio.TaskGroup() as group:
            injecting = [group.create_task(injector.run()) for _ in range(options.overlap)]
            others = [group.create_task(self._other(n)) for n in range(CLIENTS_OF_OTHERS)]
            others.append(
                group.create_task(self._archivist.run(self._fleet.address, injector.healing))
            )
            jobs = [group.create_task(self._client(number)) for number in range(options.clients)]
            if not await over(jobs, injector.all_points, faults_s):
                self._cut_short(faults_s, sum(not job.done() for job in jobs))
            injector.heal()
            await asyncio.gather(*injecting)
            await self._fleet.revive()
            injector.events.append(history.Healed(at_ms=now_ms()))
            await asyncio.gather(*jobs, *others)

    def _cut_short(self, faults_s: float, clients: int) -> None:
        """Notes that faults end although they were to go on, and what was not shown for that."""
        done, untried = self._injector.done, self._injector.untried
        done.cut_short = f"after {faults_s:.0f} s, when {clients} clients still had jobs to run"
        if untried:
            points = ", ".join(untried)
            self._problems.append(f"there was no time for faults at {points}: raise --limit-s")

    async def _client(self, number: int) -> None:
        """One client's share of the jobs that must all complete."""
        chance = random.Random(f"{self._options.seed} client {number}")  # noqa: S311 - a seed
        choices = list(self._texts)
        async with Client(f"client-{number}", self._fleet.address, self._notes) as client:
            for _ in range(self._options.jobs):
                await client.run(chance.choice(choices))

    async def _other(self, number: int) -> None:
        """Jobs that are cancelled, and jobs on engines that may answer twice differently.

        They go on for as long as faults do.
        """
        chance = random.Random(f"{self._options.seed} other {number}")  # noqa: S311 - a seed
        choices = list(self._texts)
        sampling = Sampling(max_tokens=300, temperature=0.8)
        free = [
            Task(FREE_MODEL, "Tell me", sampling, exact=False, failover=failover)
            for failover in (None, FailoverPolicy.CONTINUE)
        ]
        async with Client(f"other-{number}", self._fleet.address, self._notes) as client:
            while not self._injector.healing.is_set():
                if self._options.engines and chance.random() < 0.5:  # noqa: PLR2004 - a half
                    await client.run(chance.choice(free))
                else:
                    await client.run(chance.choice(choices), chance.choice((0, 1, 3, 10)))

    def _points(self) -> dict[str, list[str]]:
        """Failpoints by process; hosts share those of their program."""
        pools = sorted(pool_managerd.failpoints.POINTS)
        hosts = self._fleet.hosts
        points = {host.name: pools[number :: len(hosts)] for number, host in enumerate(hosts)}
        points[self._fleet.orchestrator.name] = sorted(orchestrator_core.failpoints.POINTS)
        return points if self._options.points else {name: [] for name in points}

    # --- judgement

    def _judged(self, wall_s: float) -> Result:
        notes, fleet, problems = self._notes, self._fleet, self._problems
        seen = history.merge(
            journal_events(fleet.journal) if fleet.journal.exists() else [],
            *(host_events(fleet.log(host)) for host in fleet.hosts),
            self._injector.events,
            notes.events,
        )
        must = self._must_finish(notes)
        texts = {
            job_id: self._texts[task] for job_id, task in notes.tasks.items() if task in self._texts
        }
        expect = checker.Expect(texts=texts, must_finish=must, settle_ms=60_000, drop_lru=False)
        problems += [
            f"{name}: {outcome}"
            for name, outcome in notes.outcomes.items()
            if outcome.startswith(("REFUSED", "BROKEN"))
        ]
        problems += self._archivist.problems
        missing = self._options.clients * self._options.jobs - len(must)
        if missing:
            problems.append(f"{missing} jobs were never accepted")
        violations = checker.check(seen, expect)
        return Result(
            self._options, self._injector.done, notes, must, violations, problems, seen, wall_s
        )

    @staticmethod
    def _must_finish(notes: Notes) -> set[str]:
        return {
            event.job_id
            for event in notes.events
            if isinstance(event, history.EnqueueAcked) and event.client.startswith("client-")
        }


async def over(
    jobs: Collection[asyncio.Task[None]], all_points: asyncio.Event, faults_s: float
) -> bool:
    """Returns when faults have done their work: all jobs and points; False when time was up first.

    Nothing is cancelled then.
    """
    points = asyncio.create_task(all_points.wait())
    try:
        _, left = await asyncio.wait([*jobs, points], timeout=max(0.0, faults_s))
    finally:
        points.cancel()
    return not left


def tasks(*, engines: bool) -> list[Task]:
    """What clients ask for. Short and long, text of one to four bytes a character."""
    chosen = [
        Task(
            MOCK_MODEL,
            f"mock prompt {number}",
            Sampling(
                seed=number + 1,
                engine_options={
                    "mock": {
                        "token_count": 20 + 25 * number,
                        "token_interval_ms": 4 + 3 * number,
                        "multi_byte": number % 2 == 1,
                    }
                },
            ),
        )
        for number in range(VARIANTS)
    ]
    if engines:
        chosen += [
            Task(
                EXACT_MODEL,
                f"Once upon a time {number}",
                Sampling(seed=number + 1, temperature=0.8, max_tokens=60 + 120 * number),
            )
            for number in range(VARIANTS)
        ]
    return chosen
