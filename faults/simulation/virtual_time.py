"""An event loop whose time is a number, and processes that can be killed in it.

Nothing waits: when nothing is ready, time jumps to the next timer. With everything that could
differ from run to run kept out (see `sealed`), a run is a function of its seed.

A killed process is frozen: its tasks, callbacks and timers never run again while the run lasts, so
no `finally` of it can act. When the run is over they are thawed to be cleaned up; by then all that
they could reach is closed to them.
"""

import asyncio
import contextvars
import heapq
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any

STEPS_MAX = 2_000_000
"""Rounds of the loop in one run; more means that something goes round in circles."""

_CLEAN_UP_STEPS_MAX = 20_000
_CLEAN_UP_ROUNDS_MAX = 20


class StuckError(Exception):
    """The run goes nowhere: nothing will ever happen, or too much happens at one instant."""


class Killed(BaseException):
    """Ends the code that runs while its own process is killed. What it unwinds is closed off."""


class Process:
    """What dies together. `tasks` are all that it ever started."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.tasks: list[asyncio.Task[Any]] = []

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a task that belongs to this process."""
        context = contextvars.copy_context()
        context.run(CURRENT.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    def run(self, call: Callable[[], Any]) -> Any:
        """Calls something as this process: what it starts belongs to it."""
        context = contextvars.copy_context()
        context.run(CURRENT.set, self)
        return context.run(call)

    @property
    def busy(self) -> int:
        """Tasks that have not ended."""
        return sum(not task.done() for task in self.tasks)


CURRENT: ContextVar[Process | None] = ContextVar("faults_process", default=None)


class VirtualLoop(asyncio.BaseEventLoop):
    """Time starts at 0 and advances only when nothing is ready."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._steps_left = STEPS_MAX
        self._selector = self
        self._clock_resolution = 1e-9
        self._parked: list[events.Handle] = []
        self._frozen = True
        self._everybody: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)  # type: ignore[arg-type] # the stubs know no context

    # --- time

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._now_s

    @property
    def now_ms(self) -> int:
        """Virtual milliseconds since the start."""
        return int(self._now_s * 1000)

    def select(self, timeout: float | None) -> list[Any]:
        """Advances time instead of waiting."""
        if timeout is None:
            raise StuckError("no timer is set and nothing is ready: nothing will ever happen")
        self._steps_left -= 1
        if self._steps_left < 0:
            raise StuckError(f"more than {STEPS_MAX} rounds by {self._now_s:.3f} s")
        self._now_s += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There are no threads."""

    # --- processes

    def freeze(self, process: Process) -> None:
        """Kills a process: nothing of it runs from now on. O(handles that wait)."""
        process.alive = False
        # A cancelled handle keeps its place: the loop has counted it already.
        for handle in (*self._ready, *self._scheduled):
            if _belongs(handle, process) and not handle.cancelled():
                self._parked.append(
                    events.Handle(handle._callback, handle._args, self, handle._context)
                )
                handle.cancel()

    def thaw(self) -> None:
        """Lets the dead run again, to be cleaned up."""
        self._frozen = False
        self._ready.extend(self._parked)
        self._parked = []

    def clean_up(self) -> None:
        """Cancels every task and lets them end. The loop must not run; it can only be closed then.

        Raises:
            StuckError: when tasks do not end.
        """
        self.thaw()
        self._steps_left = _CLEAN_UP_STEPS_MAX
        self.set_exception_handler(lambda _loop, _context: None)
        # Who is cancelled may start others.
        for _ in range(_CLEAN_UP_ROUNDS_MAX):
            tasks = [task for task in self._everybody if not task.done()]
            self._everybody = []
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            self.run_until_complete(self._ended(tasks))
        raise StuckError("tasks that are cancelled start others without end")

    async def _ended(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            if not task.done():
                await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()

    def _make_task(
        self,
        _loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, Any],
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=self, context=context)
        process = CURRENT.get() if context is None else context.get(CURRENT)
        self._everybody.append(task)
        if process is not None:
            process.tasks.append(task)
        return task

    # --- callbacks

    def call_soon(  # type: ignore[override] # typed as the loop was before type variables
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.Handle:
        """As any loop, but for what a dead process asks for."""
        process = CURRENT.get() if context is None else context.get(CURRENT)
        handle = events.Handle(callback, args, self, context)
        if process is None or process.alive or not self._frozen:
            self._ready.append(handle)
        else:
            self._parked.append(handle)
        return handle

    def call_at(  # type: ignore[override] # as above
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> events.TimerHandle:
        """As any loop, but for what a dead process asks for."""
        process = CURRENT.get() if context is None else context.get(CURRENT)
        timer = events.TimerHandle(when, callback, args, self, context)
        if process is None or process.alive or not self._frozen:
            heapq.heappush(self._scheduled, timer)
            timer._scheduled = True  # type: ignore[attr-defined] # not in the stubs
        return timer

    _ready: Any
    _scheduled: Any


def _belongs(handle: events.Handle, process: Process) -> bool:
    context: Context = handle._context  # type: ignore[attr-defined] # not in the stubs
    return context.get(CURRENT) is process
