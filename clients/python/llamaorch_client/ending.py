# SPDX-License-Identifier: Apache-2.0
"""The error with which the server ended a call, although its client was still sending.

A write that fails because the call is over replaces the server's status by INTERNAL "Internal error
from Core". The server's is the first one, so it is noted as soon as it is there.
Source: grpcio 1.85, `_StreamRequestMixin._write`; https://github.com/grpc/grpc/issues/36066.
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

from grpc import aio

_T = TypeVar("_T")


class Ending:
    """Notes how a call ends. To be made before anything is awaited of the call."""

    def __init__(self, call: aio.Call) -> None:
        self._call = call
        self._first: aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    def error(self, raised: aio.AioRpcError) -> aio.AioRpcError:
        """The server's error, where a call raised this one."""
        return self._first or raised

    def _note(self, _: object) -> None:
        call = self._call
        self._first = aio.AioRpcError(
            _at_once(call.code()),
            _at_once(call.initial_metadata()),
            _at_once(call.trailing_metadata()),
            _at_once(call.details()),
        )


def _at_once(known: Coroutine[Any, Any, _T]) -> _T:
    """What a coroutine returns that has nothing to wait for: the call is over."""
    try:
        known.send(None)
    except StopIteration as told:
        value: _T = told.value
        return value
    known.close()
    raise AssertionError("what is asked of a call that is over is known")
