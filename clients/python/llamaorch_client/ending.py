# SPDX-License-Identifier: Apache-2.0
"""The error with which the server ended a call, although its client was still sending.

A write that fails because the call is over sets INTERNAL "Internal error from Core", before the
server's status is there, or instead of it.
Source: grpcio 1.85, `_StreamRequestMixin._write`; https://github.com/grpc/grpc/issues/36066.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
from grpc import aio

WRITE_FAILED = "Internal error from Core"
# The server's status is on this machine already when a write fails for it.
STATUS_S = 1.0
LOOK_EVERY_S = 0.005

_T = TypeVar("_T")


class Ending:
    """Notes how a call ends. To be made before anything is awaited of the call."""

    def __init__(self, call: aio.Call) -> None:
        self._call = call
        self._first: aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def error(self, raised: aio.AioRpcError) -> aio.AioRpcError:
        """The server's error, where a call raised this one; this one, where there is none."""
        for known in (raised, self._first):
            if known is not None and not _of_a_write(known):
                return known
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_S):
                while _of_a_write(told := self._told()):  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(LOOK_EVERY_S)
                return told
        return raised

    def _note(self, _: object) -> None:
        self._first = self._told()

    def _told(self) -> aio.AioRpcError:
        call = self._call
        return aio.AioRpcError(
            _at_once(call.code()),
            _at_once(call.initial_metadata()),
            _at_once(call.trailing_metadata()),
            _at_once(call.details()),
        )


def _of_a_write(error: aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == WRITE_FAILED


def _at_once(known: Coroutine[Any, Any, _T]) -> _T:
    """What a coroutine returns that has nothing to wait for: the call is over."""
    try:
        known.send(None)
    except StopIteration as told:
        value: _T = told.value
        return value
    known.close()
    raise AssertionError("what is asked of a call that is over is known")
