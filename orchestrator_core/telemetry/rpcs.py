"""Counts and spans calls around a service's handlers, whatever their style.

Calls that bring or cancel jobs have spans of their own (`calls`); the others decide nothing and are
spanned where their caller sent a trace context. An interceptor of grpc.aio costs every call a turn
through its chain; handlers that are wrapped once cost a function call. Coroutines that read and
write the context and asynchronous generators both keep their style.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import grpc
from opentelemetry.trace import SpanKind

from orchestrator_core.telemetry import names
from orchestrator_core.telemetry.calls import caller_attributes, watched_call
from orchestrator_core.telemetry.tracing import Span, Tracing, Value, parse_traceparent

# Exchange brings jobs, each of which has its own.
_SPANNED: Final = frozenset({"Enqueue", "Cancel"})
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


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


@dataclass(frozen=True, slots=True)
class _Method:
    """One method: its full and short name, whether it streams, and who is told of its calls."""

    full_name: str
    stream: bool
    watcher: CallWatcher
    tracing: Tracing

    @property
    def name(self) -> str:
        """The name without that of the service."""
        return self.full_name.rpartition("/")[2]

    @contextmanager
    def call(self, context: Any) -> Iterator[None]:
        """Watches one call."""
        name, code, span = self.name, "CANCELLED", self._span(context)
        if self.stream:
            self.watcher.stream_opened(name)
        elif span is not None:
            # The task is the call's own, and ends with it.
            watched_call.set(span.context)
        try:
            yield
            code = _code(context, grpc.StatusCode.OK)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException:
            code = _code(context, grpc.StatusCode.UNKNOWN)
            raise
        finally:
            if self.stream:
                self.watcher.stream_closed(name)
            self.watcher.call_ended(name, code)
            if span is not None:
                error = "" if code == "OK" else code
                self.tracing.end(span, None, {names.RPC_STATUS: code}, error)
                self.tracing.decide(span.context, keep=bool(error))

    def _span(self, context: Any) -> Span | None:
        if not self.tracing.enabled or self.name in _SPANNED:
            return None
        metadata = context.invocation_metadata() or ()
        parent = parse_traceparent(str(dict(metadata).get("traceparent", "")))
        if parent is None:
            return None
        method: dict[str, Value] = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: self.full_name}
        attributes = method | caller_attributes()
        return self.tracing.start(self.full_name, parent, None, attributes, SpanKind.SERVER)


class WatchedService(grpc.GenericRpcHandler):
    """The handlers of a service, watched."""

    def __init__(
        self, service: grpc.GenericRpcHandler, watcher: CallWatcher, tracing: Tracing
    ) -> None:
        self._service = service
        self._watcher = watcher
        self._tracing = tracing
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
            watched = partial(_Method, method.lstrip("/"), watcher=self._watcher)
            known = _watched(handler, partial(watched, tracing=self._tracing))
            self._handlers[method] = known
        return known


def _watched(
    handler: "grpc.RpcMethodHandler[Any, Any]", method: Callable[..., _Method]
) -> "grpc.RpcMethodHandler[Any, Any]":
    codec = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary is not None:
        behaviour = _coroutine(handler.unary_unary, method(stream=False))
        return grpc.unary_unary_rpc_method_handler(behaviour, **codec)
    if handler.unary_stream is not None:
        behaviour = _streaming(handler.unary_stream, method(stream=True))
        return grpc.unary_stream_rpc_method_handler(behaviour, **codec)
    if handler.stream_stream is not None:
        behaviour = _streaming(handler.stream_stream, method(stream=True))
        return grpc.stream_stream_rpc_method_handler(behaviour, **codec)
    behaviour = _coroutine(handler.stream_unary, method(stream=True))
    return grpc.stream_unary_rpc_method_handler(behaviour, **codec)


def _streaming(behaviour: Any, method: _Method) -> Any:
    if not inspect.isasyncgenfunction(behaviour):
        return _coroutine(behaviour, method)

    async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
        with method.call(context):
            async for response in behaviour(request, context):
                yield response

    return generate


def _coroutine(behaviour: Any, method: _Method) -> Any:
    async def call(request: Any, context: Any) -> Any:
        with method.call(context):
            return await behaviour(request, context)

    return call


def _code(context: Any, otherwise: grpc.StatusCode) -> str:
    """The status that was set, be it as a number; else `otherwise`."""
    code = context.code() or otherwise
    found = code if isinstance(code, grpc.StatusCode) else _CODES.get(code)
    return grpc.StatusCode.UNKNOWN.name if found is None else found.name
