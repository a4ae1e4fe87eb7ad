"""Takes whatever OTLP exports and forgets it: `python -m benchmarks.load.sink`."""

import asyncio
from typing import Any

import grpc

from benchmarks.load.control import obey

_SERVICES = (
    "opentelemetry.proto.collector.trace.v1.TraceService",
    "opentelemetry.proto.collector.metrics.v1.MetricsService",
)


async def _export(_request: bytes, _context: Any) -> bytes:
    # An empty message is a full success.
    return b""


async def main() -> None:
    """Serves until the driver ends."""
    server = grpc.aio.server()
    handler: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Export": grpc.unary_unary_rpc_method_handler(_export)
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, handler) for name in _SERVICES]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await obey({}, endpoint=f"http://127.0.0.1:{port}")


if __name__ == "__main__":
    asyncio.run(main())
