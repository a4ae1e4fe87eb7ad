"""Calls are counted and spanned whatever the style of their handler, over real gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator_core.telemetry.calls import operator_context
from orchestrator_core.telemetry.rpcs import WatchedService
from orchestrator_core.telemetry.tracing import Tracing

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Watcher:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.closed = asyncio.Event()

    def stream_opened(self, method: str) -> None:
        """See `CallWatcher`."""
        self.open.append(method)

    def stream_closed(self, method: str) -> None:
        """See `CallWatcher`."""
        self.open.remove(method)

    def call_ended(self, method: str, code: str) -> None:
        """See `CallWatcher`."""
        self.ended.append((method, code))
        self.closed.set()


async def _echo(request: bytes, _: Any) -> bytes:
    return request


async def _decide(_: bytes, __: Any) -> bytes:
    context = operator_context()
    return b"" if context is None else context.span_id.to_bytes(8, "big")


async def _refuse(_: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.NOT_FOUND)
    await context.abort(grpc.StatusCode.NOT_FOUND, "no")
    return b""


async def _break(_: bytes, __: Any) -> bytes:
    raise RuntimeError("a bug")


async def _generate(request: bytes, _: Any) -> AsyncIterator[bytes]:
    yield request
    yield request


async def _write(_: Any, context: Any) -> None:
    async for request in _requests(context):
        await context.write(request)


async def _requests(context: Any) -> AsyncIterator[bytes]:
    while (request := await context.read()) is not grpc.aio.EOF:
        yield request


async def _wait(_: bytes, context: Any) -> None:
    await context.write(b"open")
    await asyncio.Event().wait()


async def _join(requests: AsyncIterator[bytes], _: Any) -> bytes:
    return b"".join([request async for request in requests])


HANDLERS = {
    "Echo": grpc.unary_unary_rpc_method_handler(_echo),
    "Decide": grpc.unary_unary_rpc_method_handler(_decide),
    "Refuse": grpc.unary_unary_rpc_method_handler(_refuse),
    "Break": grpc.unary_unary_rpc_method_handler(_break),
    "Generate": grpc.unary_stream_rpc_method_handler(_generate),
    "Wait": grpc.unary_stream_rpc_method_handler(_wait),
    "Write": grpc.stream_stream_rpc_method_handler(_write),
    "Join": grpc.stream_unary_rpc_method_handler(_join),
}


class Served:
    """A server with every style of handler, and a channel to it."""

    def __init__(self) -> None:
        self.watcher, self.exporter = Watcher(), InMemorySpanExporter()
        self.tracing = tracing = Tracing(SimpleSpanProcessor(self.exporter))
        service = grpc.method_handlers_generic_handler("test.Service", HANDLERS)
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers([WatchedService(service, self.watcher, tracing)])
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.metadata: tuple[tuple[str, str], ...] = (("traceparent", TRACEPARENT),)

    async def ended(self) -> tuple[str, str]:
        """Waits for the end of the only call."""
        async with asyncio.timeout(10):
            await self.watcher.closed.wait()
        return self.watcher.ended[0]

    def span(self) -> ReadableSpan:
        """The only span."""
        self.tracing.flush()
        (span,) = self.exporter.get_finished_spans()
        return span


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A running one."""
    running = Served()
    await running.server.start()
    yield running
    await running.channel.close()
    await running.server.stop(0)


async def test_a_unary_call_is_a_span_of_its_callers_trace(served: Served) -> None:
    """Named and marked as the RPC conventions say."""
    assert (
        await served.channel.unary_unary("/test.Service/Echo")(b"x", metadata=served.metadata)
        == b"x"
    )

    assert await served.ended() == ("Echo", "OK")
    span = served.span()
    assert span.name == "test.Service/Echo"
    assert f"{span.context.trace_id:032x}" in TRACEPARENT
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "test.Service/Echo",
        "rpc.response.status_code": "OK",
    }


async def test_what_a_call_decides_stands_under_its_span(served: Served) -> None:
    """A drain is found in the trace of whoever drains; that of the call before is over."""
    decide = served.channel.unary_unary("/test.Service/Decide")

    told = await decide(b"", metadata=served.metadata)
    untraced = await decide(b"")

    await served.ended()
    assert int.from_bytes(told, "big") == served.span().context.span_id
    assert untraced == b""


async def test_without_a_trace_context_there_is_no_span(served: Served) -> None:
    """A poll each second is no decision."""
    await served.channel.unary_unary("/test.Service/Echo")(b"x")

    assert await served.ended() == ("Echo", "OK")
    served.tracing.flush()
    assert served.exporter.get_finished_spans() == ()


@pytest.mark.parametrize(("method", "code"), [("Refuse", "NOT_FOUND"), ("Break", "UNKNOWN")])
async def test_a_call_that_fails_tells_its_code(served: Served, method: str, code: str) -> None:
    """An abort has the status that was set before it; a bug is UNKNOWN."""
    call = served.channel.unary_unary(f"/test.Service/{method}")
    with pytest.raises(grpc.aio.AioRpcError):
        await call(b"x", metadata=served.metadata)

    assert await served.ended() == (method, code)
    assert (served.span().attributes or {})["error.type"] == code


async def test_generators_and_coroutines_stream_as_they_did(served: Served) -> None:
    """Both are streams while they are open, and nothing of what they send is lost."""
    generated = served.channel.unary_stream("/test.Service/Generate")(b"x")
    assert [message async for message in generated] == [b"x", b"x"]
    written = served.channel.stream_stream("/test.Service/Write")(iter([b"a", b"b"]))
    assert [message async for message in written] == [b"a", b"b"]
    joined = await served.channel.stream_unary("/test.Service/Join")(iter([b"a", b"b"]))

    assert joined == b"ab"
    assert served.watcher.open == []
    ended = {("Generate", "OK"), ("Write", "OK"), ("Join", "OK")}
    assert set(served.watcher.ended) == ended


async def test_a_stream_that_its_client_leaves_is_cancelled(served: Served) -> None:
    """It counts as open until then."""
    call = served.channel.unary_stream("/test.Service/Wait")(b"x", metadata=served.metadata)
    assert await call.read() == b"open"
    assert served.watcher.open == ["Wait"]

    call.cancel()

    assert await served.ended() == ("Wait", "CANCELLED")
    assert served.watcher.open == []


async def test_a_method_that_is_not_there_stays_so(served: Served) -> None:
    """UNIMPLEMENTED, and nothing is remembered of its name."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await served.channel.unary_unary("/test.Service/Nothing")(b"x")

    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert served.watcher.ended == []
