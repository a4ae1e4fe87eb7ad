"""Calls that bring or cancel jobs: their server spans, latency, and refusals the core never saw."""

import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from opentelemetry.trace import SpanContext, SpanKind

from orchestrator_core.auth.caller import caller
from orchestrator_core.core.outcome import Refusal
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.errors import RefusalError
from orchestrator_core.telemetry import names
from orchestrator_core.telemetry.metrics import Metrics
from orchestrator_core.telemetry.span_attributes import TEXT_MAX
from orchestrator_core.telemetry.tracing import (
    Span,
    Tracing,
    Value,
    format_traceparent,
    parse_traceparent,
)

Metadata = Iterable[tuple[str, str | bytes]]

_SERVICE: Final = "llamaorch.orchestrator.v1.OrchestratorService"
_METHODS: Final = {names.ENQUEUE: f"{_SERVICE}/Enqueue", names.CANCEL: f"{_SERVICE}/Cancel"}
_NS_PER_MS = 1_000_000


@dataclass(slots=True)
class Rpc:
    """A call that is being answered. `traceparent` belongs into the job that it brings.

    `asked` is the job of an enqueue once it is read, `correlation_id` that of one that cannot be.
    """

    name: str
    context: SpanContext
    received_ns: int
    asked: JobSpec | None = None
    correlation_id: str = ""
    accepted: JobSpec | None = None
    refusal_counted: bool = False

    @property
    def traceparent(self) -> str:
        """W3C trace context of the call; never empty."""
        return format_traceparent(self.context)

    @property
    def trace_id(self) -> str:
        """Trace id, 32 hex digits."""
        return f"{self.context.trace_id:032x}"


# The core answers within the task of the call, so an effect finds its call here.
current_rpc: ContextVar[Rpc | None] = ContextVar("orchestratord_rpc", default=None)


def call_context() -> SpanContext | None:
    """Context of the call that is being answered; None outside of one."""
    rpc = current_rpc.get()
    return None if rpc is None else rpc.context


# The span of a call that brings no job, while it is answered in one piece.
watched_call: ContextVar[SpanContext | None] = ContextVar("orchestratord_call", default=None)


def operator_context() -> SpanContext | None:
    """Context of the call by which an operator decided something; None where nobody traces it."""
    return watched_call.get()


def caller_attributes() -> dict[str, Value]:
    """Whose call it is, and six digits of the hash of its token; nothing without tokens.

    AUTH-1008.
    """
    who = caller()
    if not who.fingerprint:
        return {}
    return {names.IDENTITY: who.name, names.TOKEN_FINGERPRINT: who.fingerprint}


class Calls:
    """Spans calls. `reject` is told of refusals that did not come out of the core."""

    def __init__(
        self,
        tracing: Tracing,
        metrics: Metrics,
        reject: Callable[[Refusal], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._tracing = tracing
        self._metrics = metrics
        self._reject = reject
        self._clock_ns = clock_ns

    def rpc(self, name: str, metadata: Metadata | None) -> "Call":
        """Spans one call while the block runs; see `Telemetry.rpc`."""
        return Call(self, *self._received(name, metadata))

    def end(self, rpc: Rpc, span: Span | None, error: BaseException | None) -> None:
        """Notes how a call ended."""
        why = ""
        if error is None:
            if rpc.accepted is not None:
                latency_ms = (self._clock_ns() - rpc.received_ns) / _NS_PER_MS
                self._metrics.durable(rpc.accepted, latency_ms)
        elif isinstance(error, RefusalError):
            why = error.refusal.reason.value
            if rpc.name == names.ENQUEUE and not rpc.refusal_counted:
                self._reject(error.refusal)
        else:
            # The type only: a message may quote what the client sent.
            why = type(error).__name__ if isinstance(error, Exception) else "cancelled"
        if span is not None:
            job = None if rpc.accepted is None else {names.JOB_ID: rpc.accepted.job_id}
            self._tracing.end(span, None, job, why)
            # Of a job that was accepted the end decides.
            if error is not None or rpc.accepted is None:
                self._tracing.decide(span.context, keep=error is not None)

    def _received(self, name: str, metadata: Metadata | None) -> tuple[Rpc, Span | None]:
        entries = {
            key: value
            for key, value in metadata or ()
            if key in ("traceparent", "x-correlation-id") and isinstance(value, str)
        }
        caller = entries.get("traceparent", "")
        if not self._tracing.enabled:
            return Rpc(name, self._tracing.context(caller), self._clock_ns()), None
        attributes: dict[str, Value] = {
            names.RPC_SYSTEM: "grpc",
            names.RPC_METHOD: _METHODS.get(name, "_OTHER"),
            **caller_attributes(),
        }
        if entries.get("x-correlation-id"):
            attributes[names.CORRELATION_ID] = entries["x-correlation-id"][:TEXT_MAX]
        parent = parse_traceparent(caller)
        span = self._tracing.start(name, parent, None, attributes, SpanKind.SERVER)
        return Rpc(name, span.context, self._clock_ns()), span


class Call:
    """One call while it is answered. A class, as a generator would cost each call twice as much."""

    __slots__ = ("_calls", "_rpc", "_span", "_token")
    _token: Token[Rpc | None]

    def __init__(self, calls: Calls, rpc: Rpc, span: Span | None) -> None:
        self._calls = calls
        self._rpc = rpc
        self._span = span

    def __enter__(self) -> Rpc:
        self._token = current_rpc.set(self._rpc)
        return self._rpc

    def pause(self) -> None:
        """Instead of the end of the block: the call goes on, and is entered again to be ended."""
        current_rpc.reset(self._token)

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            self._calls.end(self._rpc, self._span, error)
        finally:
            current_rpc.reset(self._token)
