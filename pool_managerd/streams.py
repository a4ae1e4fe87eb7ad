"""What both streams to the orchestrator need from grpc.aio."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import grpc

from pool_managerd.errors import SessionLostError

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

STREAM_ERRORS = (SessionLostError, grpc.RpcError, TimeoutError, asyncio.InvalidStateError)
"""How a stream ends: by our decision, by status, by silence, or found finished when writing."""


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
        raise SessionLostError("the stream was cancelled") from None


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
