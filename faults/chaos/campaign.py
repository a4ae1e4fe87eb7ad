"""One campaign: clients run jobs while every process is killed and stopped; then all is judged."""

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import orchestrator_core.failpoints
import pool_managerd.failpoints
from faults import checker, history
from faults.chaos.clients import Client, Notes, Task, now_ms
from faults.chaos.fleet import (
    EXACT_MODEL,
    FREE_MODEL,
    MOCK_MODEL,
    POLL_S,
    Fleet,
    HarnessError,
    Process,
    host_of_pool,
)
from faults.chaos.observers import host_events, journal_events
from faults.chaos.plan import Action, Life, lives
from llamaorch_client import Sampling

REACH_TIMEOUT_S = 6.0
ENGINE_EVERY_S = (1.0, 4.0)
ENGINE_STOP_S = (0.1, 8.0)
REFERENCE_TIMEOUT_S = 60.0
VARIANTS = 6
CLIENTS_OF_OTHERS = 2


@dataclass(frozen=True, slots=True)
class Options:
    """Size of a campaign. `points` False: random moments alone. `limit_s` bounds all of it."""

    seed: int = 1
    clients: int = 8
    jobs: int = 100
    hosts: int = 2
    engines: bool = True
    points: bool = True
    limit_s: float = 1_200.0


@dataclass(slots=True)
class Faults:
    """What was done to the processes."""

    kills: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    reached: set[str] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a campaign."""

    options: Options
    faults: Faults
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
        self._faults = Faults()
        self._events: list[history.AnyEvent] = []
        self._texts: dict[Task, str] = {}
        self._healing = asyncio.Event()
        self._points_left = 0
        self._points_done = asyncio.Event()

    async def run(self) -> Result:
        """All of it. What goes wrong is in the result; no process is left behind."""
        started_s = time.monotonic()
        problems: list[str] = []
        try:
            async with asyncio.timeout(self._options.limit_s):
                await self._fleet.start()
                await self._reference()
                await self._chaos()
                codes = await self._fleet.close()
            problems += [f"exit codes after a drain: {codes}"] if any(codes) else []
        except TimeoutError:
            problems.append(f"not done within {self._options.limit_s:.0f} s")
        except HarnessError as error:
            problems.append(str(error))
        except ExceptionGroup as group:
            problems += [f"{type(error).__name__}: {error}" for error in group.exceptions]
        finally:
            self._fleet.kill_all()
        return self._judged(problems, time.monotonic() - started_s)

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

    async def _chaos(self) -> None:
        async with asyncio.TaskGroup() as group:
            drivers = [group.create_task(driver) for driver in self._drivers()]
            others = [group.create_task(self._other(n)) for n in range(CLIENTS_OF_OTHERS)]
            jobs = [
                group.create_task(self._client(number)) for number in range(self._options.clients)
            ]
            await asyncio.gather(*jobs)
            if self._options.points:
                await self._points_done.wait()
            self._healing.set()
            await asyncio.gather(*drivers)
            await self._fleet.revive()
            self._events.append(history.Healed(at_ms=now_ms()))
            await asyncio.gather(*others)

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
        free = Task(FREE_MODEL, "Tell me", Sampling(max_tokens=300, temperature=0.8), exact=False)
        async with Client(f"other-{number}", self._fleet.address, self._notes) as client:
            while not self._healing.is_set():
                if self._options.engines and chance.random() < 0.5:  # noqa: PLR2004 - a half
                    await client.run(free)
                else:
                    await client.run(chance.choice(choices), chance.choice((0, 1, 3, 10)))

    # --- faults

    def _drivers(self) -> Iterator[Coroutine[object, object, None]]:
        options, fleet = self._options, self._fleet
        orchestrator = sorted(orchestrator_core.failpoints.POINTS) if options.points else []
        pools = sorted(pool_managerd.failpoints.POINTS) if options.points else []
        shares = [pools[number :: options.hosts] for number in range(options.hosts)]
        self._points_left = 1 + options.hosts
        yield self._drive(fleet.orchestrator, orchestrator)
        for host, share in zip(fleet.hosts, shares, strict=True):
            yield self._drive(host, share)
        if options.engines:
            yield self._engines()

    async def _drive(self, process: Process, points: list[str]) -> None:
        """Ends one life of a process after another, until all is to heal."""
        missing = {f"{_kind(process)} {point}" for point in points}
        self._faults.wanted |= missing
        told = False
        plan = lives(f"{self._options.seed} {process.name}", points)
        again: list[Life] = []
        while not self._healing.is_set():
            life = again.pop() if again else next(plan)
            reached = await self._live(process, life)
            if life.point and reached:
                missing.discard(f"{_kind(process)} {life.point}")
                self._faults.reached.add(f"{_kind(process)} {life.point}")
            elif life.point:
                # Passed too rarely for its number: once more, at the first pass.
                again.append(Life(life.action, life.point, stop_ms=life.stop_ms))
            if not missing and not told:
                told = True
                self._done()

    def _done(self) -> None:
        self._points_left -= 1
        if self._points_left == 0:
            self._points_done.set()

    async def _live(self, process: Process, life: Life) -> bool:
        """One life: the one before it ends now, and this one as `life` says.

        Returns False when its point was not reached in time.
        """
        await self._kill(process)
        await asyncio.sleep(life.pause_ms / 1000)
        await process.start(life.failpoint)
        self._events.append(history.Restarted(at_ms=now_ms(), process=process.name))
        if life.point:
            reached = await self._reached(process)
        else:
            reached = True
            await asyncio.sleep(life.moment_ms / 1000)
            if life.action is Action.STOP:
                process.send(signal.SIGSTOP)
        if reached and life.action is Action.STOP:
            self._faults.stops[_kind(process)] += 1
            await self._until_healing(life.stop_ms / 1000)
            process.send(signal.SIGCONT)
            await self._until_healing(life.moment_ms / 1000)
        if not process.alive:
            # It killed itself at its point.
            self._killed(process)
        return reached

    async def _reached(self, process: Process) -> bool:
        """Waits until the process died or stopped at its point."""
        until_s = time.monotonic() + REACH_TIMEOUT_S
        while time.monotonic() < until_s and not self._healing.is_set():
            if not process.alive or process.stopped:
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _kill(self, process: Process) -> None:
        if process.alive:
            await process.kill()
            self._killed(process)

    def _killed(self, process: Process) -> None:
        name = process.name
        self._faults.kills[_kind(process)] += 1
        self._events.append(history.Crashed(at_ms=now_ms(), process=name))
        everywhere = process is self._fleet.orchestrator
        self._notes.fault(lambda pool_id: everywhere or host_of_pool(pool_id) == name)

    async def _engines(self) -> None:
        """Kills and stops engine processes at random moments."""
        chance = random.Random(f"{self._options.seed} engines")  # noqa: S311 - a seed
        while not self._healing.is_set():
            await self._until_healing(chance.uniform(*ENGINE_EVERY_S))
            host = chance.choice(self._fleet.hosts)
            engines = host.engines() if host.alive else []
            if engines:
                await self._hit(chance, chance.choice(engines))
        self._fleet.continue_engines()

    async def _hit(self, chance: random.Random, engine: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            if chance.random() < 0.6:  # noqa: PLR2004 - three in five
                engine.kill()
                self._faults.kills["engine"] += 1
                return
            engine.suspend()
            self._faults.stops["engine"] += 1
            self._fleet.stopped_engines.add(engine.pid)
            await self._until_healing(chance.uniform(*ENGINE_STOP_S))
            self._fleet.continue_engines()

    async def _until_healing(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._healing.wait()

    # --- judgement

    def _judged(self, problems: list[str], wall_s: float) -> Result:
        notes, fleet = self._notes, self._fleet
        seen = history.merge(
            journal_events(fleet.journal) if fleet.journal.exists() else [],
            *(host_events(fleet.log(host)) for host in fleet.hosts),
            self._events,
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
        missing = self._options.clients * self._options.jobs - len(must)
        if missing:
            problems.append(f"{missing} jobs were never accepted")
        violations = checker.check(seen, expect)
        return Result(self._options, self._faults, notes, must, violations, problems, seen, wall_s)

    @staticmethod
    def _must_finish(notes: Notes) -> set[str]:
        return {
            event.job_id
            for event in notes.events
            if isinstance(event, history.EnqueueAcked) and event.client.startswith("client-")
        }


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


def _kind(process: Process) -> str:
    return "orchestratord" if process.name == "orchestratord" else "pool-managerd"
