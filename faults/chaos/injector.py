"""Does to the processes what a plan says, and writes down what it did."""

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import psutil

from faults import history
from faults.chaos.clients import Notes, now_ms
from faults.chaos.fleet import POLL_S, Fleet, Process, host_of_pool
from faults.chaos.plan import ENGINE, Action, Fault, plan

# Longer than the retention of jobs, with which output is released.
REACH_TIMEOUT_S = 30.0
CALM_TIMEOUT_S = 20.0
ENGINE_TIMEOUT_S = 10.0
TRIES_MAX = 3


@dataclass(slots=True)
class Done:
    """What was done to the processes. `cut_short` says when faults ended for want of time."""

    kills: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    reached: set[str] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)
    cut_short: str = ""


class Injector:
    """Injects faults until `heal`. One at a time: the next begins when all streams go on again.

    With more than one of `run` at work, faults of different processes overlap.
    """

    def __init__(
        self, fleet: Fleet, notes: Notes, seed: int, points: Mapping[str, Collection[str]]
    ) -> None:
        self._fleet = fleet
        self._notes = notes
        self._plan: Iterator[Fault] = plan(str(seed), points)
        self._again: deque[Fault] = deque()
        self._turn = False
        self._first: deque[Fault] = deque()
        self._chance = random.Random(f"{seed} engines")  # noqa: S311 - a seed is asked for
        self._processes = {p.name: p for p in (fleet.orchestrator, *fleet.hosts)}
        self._locks = {name: asyncio.Lock() for name in (*self._processes, ENGINE)}
        self._left = {(kind(name), point) for name, names in points.items() for point in names}
        self.done = Done(wanted={" ".join(pair) for pair in self._left})
        self.events: list[history.AnyEvent] = []
        self.healing = asyncio.Event()
        self.all_points = asyncio.Event()
        if not self._left:
            self.all_points.set()

    def kinds_first(self) -> None:
        """Puts a kill of each kind of process before the plan; `all_points` waits for them too."""
        targets = (self._fleet.orchestrator.name, self._fleet.hosts[0].name, ENGINE)
        self._first.extend(Fault(target, Action.KILL, moment_ms=300) for target in targets)
        self.all_points.clear()

    @property
    def untried(self) -> list[str]:
        """The points, and the kinds of process, that no fault has come to yet."""
        return sorted({" ".join(pair) for pair in self._left} | {f.target for f in self._first})

    async def run(self) -> None:
        """Injects one fault after another."""
        while not self.healing.is_set():
            fault = self._next()
            async with self._locks[fault.target]:
                if fault.target == ENGINE:
                    await self._hit_engine(fault)
                else:
                    await self._hit(self._processes[fault.target], fault)
            await self._calm()
            if not self._left and not self._first:
                self.all_points.set()

    def heal(self) -> None:
        """Ends what `run` does, soon."""
        self.healing.set()

    def _next(self) -> Fault:
        """The next fault of the plan, or in turn with it one whose point was not reached."""
        if self._first:
            return self._first.popleft()
        if self._again and self._turn:
            self._turn = False
            return self._again.popleft()
        self._turn = True
        return next(self._plan)

    async def _hit(self, process: Process, fault: Fault) -> None:
        if fault.point:
            await self._at_point(process, fault)
            return
        await self._wait(fault.moment_ms / 1000)
        if fault.action is Action.KILL:
            await self._kill(process)
            await self._restart(process, fault.pause_ms)
        else:
            process.send(signal.SIGSTOP)
            await self._stopped(process, fault)

    async def _at_point(self, process: Process, fault: Fault) -> None:
        """Starts the process anew with its failpoint armed, and waits until it is passed."""
        await self._kill(process)
        await self._restart(process, fault.pause_ms, fault.failpoint)
        if not await self._reached(process):
            await self._kill(process)
            await self._restart(process, 0)
            if fault.tries < TRIES_MAX:
                self._again.append(replace(fault, passes=1, tries=fault.tries + 1))
            else:
                self._note_point(process, fault.point, reached=False)
            return
        self._note_point(process, fault.point, reached=True)
        if process.alive:
            await self._stopped(process, fault)
        else:
            self._killed(process)
            await self._restart(process, fault.pause_ms)

    def _note_point(self, process: Process, point: str, *, reached: bool) -> None:
        if reached:
            self.done.reached.add(f"{kind(process.name)} {point}")
        self._left.discard((kind(process.name), point))

    async def _reached(self, process: Process) -> bool:
        """Waits until the process died or stopped at its point."""
        until_s = time.monotonic() + REACH_TIMEOUT_S
        while time.monotonic() < until_s and not self.healing.is_set():
            if not process.alive or process.stopped:
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _stopped(self, process: Process, fault: Fault) -> None:
        self.done.stops[kind(process.name)] += 1
        await self._wait(fault.stop_ms / 1000)
        process.send(signal.SIGCONT)

    async def _kill(self, process: Process) -> None:
        if process.alive:
            await process.kill()
            self._killed(process)

    def _killed(self, process: Process) -> None:
        name = process.name
        self.done.kills[kind(name)] += 1
        self.events.append(history.Crashed(at_ms=now_ms(), process=name))
        everywhere = process is self._fleet.orchestrator
        self._notes.fault(lambda pool_id: everywhere or host_of_pool(pool_id) == name)

    async def _restart(self, process: Process, pause_ms: int, failpoint: str = "") -> None:
        await self._wait(pause_ms / 1000)
        await process.start(failpoint)
        self.events.append(history.Restarted(at_ms=now_ms(), process=process.name))

    async def _hit_engine(self, fault: Fault) -> None:
        await self._wait(fault.moment_ms / 1000)
        until_s = time.monotonic() + ENGINE_TIMEOUT_S
        while not (engines := self._engines()):
            if time.monotonic() > until_s or self.healing.is_set():
                return
            await asyncio.sleep(POLL_S)
        host_name, engine = self._chance.choice(engines)
        with contextlib.suppress(psutil.NoSuchProcess):
            if fault.action is Action.KILL:
                engine.kill()
                self.done.kills[ENGINE] += 1
                # Which of the host's pools it served is not known here; the mock's is none of them.
                self._notes.fault(
                    lambda pool: host_of_pool(pool) == host_name and not pool.endswith(":mock")
                )
                return
            self._fleet.stopped_engines.add(engine.pid)
            engine.suspend()
            self.done.stops[ENGINE] += 1
            await self._wait(fault.stop_ms / 1000)
            self._fleet.continue_engines()

    def _engines(self) -> list[tuple[str, psutil.Process]]:
        hosts = [host for host in self._fleet.hosts if host.alive]
        return [(host.name, engine) for host in hosts for engine in host.engines()]

    async def _calm(self) -> None:
        """Waits until every stream that a fault broke goes on again."""
        until_s = time.monotonic() + CALM_TIMEOUT_S
        while time.monotonic() < until_s and not self.healing.is_set():
            if not any(following.owed for following in self._notes.following.values()):
                return
            await asyncio.sleep(POLL_S)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.healing.wait()


def kind(name: str) -> str:
    """The program that a process runs, by the process's name."""
    return "orchestratord" if name == "orchestratord" else "pool-managerd"
