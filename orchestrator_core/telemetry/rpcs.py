"""Counts calls and open streams around a service's handlers, whatever their style.

An interceptor of grpc.aio costs every call a turn through its chain; handlers that are wrapped once
cost a function call. Coroutines that read and write the context and asynchronous generators both
keep their style.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import grpc

_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class CallWatcher(Protocol):
    """Is told of calls; see `ServiceMetrics`."""

    def stream_opened(self, method: str) -> None:
        """A stream began."""
        ...

    def stream_closed(self, method: str) -> None:
        """A stream ended."""
        ...

    def call_ended(self, method: str, code: str) -> None:
        """A call ended with a status code, in capitals."""
        ...


class WatchedService(grpc.GenericRpcHandler):
    """The handlers of a service, watched."""

    def __init__(self, service: grpc.GenericRpcHandler, watcher: CallWatcher) -> None:
        self._service = service
        self._watcher = watcher
        # Only methods that exist, so it is bounded.
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a method; None when the service has no such method."""
        method = handler_call_details.method
        known = self._handlers.get(method)
        if known is None:
            handler = self._service.service(handler_call_details)
            if handler is None:
                return None
            known = self._handlers[method] = _watched(handler, method, self._watcher)
        return known


def _watched(
    handler: "grpc.RpcMethodHandler[Any, Any]", method: str, watcher: CallWatcher
) -> "grpc.RpcMethodHandler[Any, Any]":
    name = method.rpartition("/")[2]
    codec = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary is not None:
        plain = _coroutine(handler.unary_unary, name, watcher, stream=False)
        return grpc.unary_unary_rpc_method_handler(plain, **codec)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(
            _streaming(handler.unary_stream, name, watcher), **codec
        )
    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(
            _streaming(handler.stream_stream, name, watcher), **codec
        )
    plain = _coroutine(handler.stream_unary, name, watcher, stream=True)
    return grpc.stream_unary_rpc_method_handler(plain, **codec)


def _streaming(behaviour: Any, name: str, watcher: CallWatcher) -> Any:
    if not inspect.isasyncgenfunction(behaviour):
        return _coroutine(behaviour, name, watcher, stream=True)

    async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
        with _watching(context, name, watcher, stream=True):
            async for response in behaviour(request, context):
                yield response

    return generate


def _coroutine(behaviour: Any, name: str, watcher: CallWatcher, *, stream: bool) -> Any:
    async def call(request: Any, context: Any) -> Any:
        with _watching(context, name, watcher, stream=stream):
            return await behaviour(request, context)

    return call


@contextmanager
def _watching(context: Any, name: str, watcher: CallWatcher, *, stream: bool) -> Iterator[None]:
    if stream:
        watcher.stream_opened(name)
    code = "CANCELLED"
    try:
        yield
        code = _CODES.get(context.code() or 0, "UNKNOWN")
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException:
        code = _CODES.get(context.code() or grpc.StatusCode.UNKNOWN.value[0], "UNKNOWN")
        raise
    finally:
        if stream:
            watcher.stream_closed(name)
        watcher.call_ended(name, code)
