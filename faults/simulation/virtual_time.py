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
    """What dies, or stops, together. `tasks` are all that it ever started.

    `running` is False while it is stopped, and for ever once it is not `alive`. `parked` are the
    callbacks and timers that wait meanwhile.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.running = True
        self.parked: list[events.Handle] = []
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
        self._stopped: list[Process] = []
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

    def run_in_executor(  # type: ignore[override] # typed as the loop was before type variables
        self, _executor: object, work: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """What is meant for a thread is done at once."""
        done = self.create_future()
        try:
            done.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 - as a thread would: whoever waits gets it
            done.set_exception(error)
        return done

    # --- processes

    def freeze(self, process: Process) -> None:
        """Kills a process: nothing of it runs from now on. O(handles that wait)."""
        process.alive = False
        self.pause(process)

    def pause(self, process: Process) -> None:
        """Stops a process until `resume`, as SIGSTOP does. O(handles that wait)."""
        if not process.running:
            return
        process.running = False
        self._stopped.append(process)
        for index, handle in enumerate(self._ready):
            if _belongs(handle, process):
                # The loop has counted what is ready, so another takes the place.
                self._ready[index] = _nothing(self)
                process.parked.append(handle)
        timers = [timer for timer in self._scheduled if _belongs(timer, process)]
        self._scheduled = [timer for timer in self._scheduled if not _belongs(timer, process)]
        heapq.heapify(self._scheduled)
        for timer in timers:
            timer._scheduled = False
        process.parked += sorted(timers)

    def resume(self, process: Process) -> None:
        """Lets a stopped process go on. What was due meanwhile is done now."""
        self._stopped.remove(process)
        process.running = True
        parked, process.parked = process.parked, []
        for handle in parked:
            if handle.cancelled():
                continue
            if isinstance(handle, events.TimerHandle):
                heapq.heappush(self._scheduled, handle)
                handle._scheduled = True  # type: ignore[attr-defined] # not in the stubs
            else:
                self._ready.append(handle)

    def clean_up(self) -> None:
        """Cancels every task and lets them end. The loop must not run; it can only be closed then.

        Raises:
            StuckError: when tasks do not end.
        """
        for process in list(self._stopped):
            self.resume(process)
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
        if process is None or process.running:
            self._ready.append(handle)
        else:
            process.parked.append(handle)
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
        if process is None or process.running:
            heapq.heappush(self._scheduled, timer)
            timer._scheduled = True  # type: ignore[attr-defined] # not in the stubs
        else:
            process.parked.append(timer)
        return timer

    _ready: Any
    _scheduled: Any


def _nothing(loop: VirtualLoop) -> events.Handle:
    handle = events.Handle(lambda: None, (), loop)
    handle.cancel()
    return handle


def _belongs(handle: events.Handle, process: Process) -> bool:
    context: Context = handle._context  # type: ignore[attr-defined] # not in the stubs
    return context.get(CURRENT) is process
