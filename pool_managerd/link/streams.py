"""What both streams to the orchestrator need from grpc.aio."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
from grpc import aio

from pool_managerd.errors import SessionLostError


class StreamCancelledError(SessionLostError):
    """The stream is over, and who read or wrote it was not told why."""


T = TypeVar("T")

STREAM_ERRORS = (SessionLostError, grpc.RpcError, TimeoutError, asyncio.InvalidStateError)
"""How a stream ends: by our decision, by status, by silence, or found finished when writing."""

WRITE_FAILED = "Internal error from Core"
# The server's status is on this machine already when a write fails for it.
STATUS_S = 1.0
LOOK_EVERY_S = 0.005


async def until_lost(work: Coroutine[object, object, T]) -> T:
    """Runs one side of a stream; one that is cancelled under it ends with SessionLostError.

    grpc.aio raises CancelledError in whoever reads or writes a cancelled call. A task group takes
    that for a child that was told to go, and would wait for its siblings for ever.

    Raises:
        SessionLostError: when the stream was cancelled and this task was not.
    """
    try:
        return await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise StreamCancelledError("the stream was cancelled") from None


async def together(*work: Coroutine[object, object, None]) -> None:
    """Runs all sides of a stream until one fails, then stops the others and raises that failure.

    Not a task group: before Python 3.13 a group that fails in the moment in which its task is
    cancelled raises the failure alone, and whoever handles that and goes on is never cancelled.
    """
    tasks = [asyncio.create_task(until_lost(side)) for side in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    failures = [task.exception() for task in tasks if not task.cancelled()]
    for failure in failures:
        if failure is not None:
            raise failure


async def written(write: Coroutine[object, object, None]) -> None:
    """Awaits a write; one that fails is told no sooner than the reader had time to hear why.

    The status of a call comes once all messages before it were read. The reader has to iterate over
    the call: `read` reads nothing of a call in which a write has failed.
    """
    try:
        await write
    except (aio.AioRpcError, asyncio.InvalidStateError):
        await asyncio.sleep(STATUS_S)
        raise


class Ending:
    """Notes why the other side ended a call. To be made before anything is awaited of the call.

    A write that fails because the call is over sets INTERNAL, before the other side's status is
    there or in place of it; one that comes later says that the call is finished, and no more.
    Source: grpcio 1.85, `_StreamRequestMixin._write`; https://github.com/grpc/grpc/issues/36066.
    """

    def __init__(self, call: aio.Call) -> None:
        self._call = call
        self._first: aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def error(self, raised: Exception) -> Exception:
        """Why the call is over, where it raised this; this, where it tells that or nobody does.

        Waits for it for a second at most, after a failed write alone.
        """
        if not self._call.done() or _tells_why(raised):
            return raised
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + STATUS_S
        told = self._first if self._first is not None and _tells_why(self._first) else self._told()
        while not _tells_why(told):
            if loop.time() >= give_up_s:
                return raised
            await asyncio.sleep(LOOK_EVERY_S)
            told = self._told()
        ended = told.code() is grpc.StatusCode.OK
        return SessionLostError("the orchestrator closed the stream") if ended else told

    def _note(self, _: object) -> None:
        if self._first is None:
            self._first = self._told()

    def _told(self) -> aio.AioRpcError:
        code, details = _at_once(self._call.code()), _at_once(self._call.details())
        return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details)


def _tells_why(error: Exception) -> bool:
    """False for what a failed write says, and for what says no more than that a call is over."""
    if isinstance(error, aio.AioRpcError):
        return (error.code(), error.details()) != (grpc.StatusCode.INTERNAL, WRITE_FAILED)
    return not isinstance(error, StreamCancelledError | asyncio.InvalidStateError)


def _at_once(known: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for: the call is over."""
    try:
        known.send(None)
    except StopIteration as told:
        value: T = told.value
        return value
    known.close()
    raise AssertionError("what is asked of a call that is over is known")
