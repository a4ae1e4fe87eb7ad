"""The `llorch` command pointed at the wrong place: what it says is what to change."""

import asyncio

import grpc
import pytest

from tests.integration.clients.llorch import llorch
from tests.integration.clients.scripted_server import Failure, ScriptedServer


@pytest.mark.parametrize(
    ("server", "arguments"),
    [
        ("http://127.0.0.1:7071", ("status",)),
        ("127.0.0.1:7070", ("devices", "--host", "http://127.0.0.1:7071")),
    ],
)
async def test_an_address_for_a_browser_is_refused_at_once(
    server: str, arguments: tuple[str, ...]
) -> None:
    """Nothing is dialled: the answer names the address to write."""
    outcome = await llorch(server, *arguments)

    assert outcome.code == 2
    assert outcome.stderr.endswith("; write 127.0.0.1:7071\n")


async def test_the_port_of_a_web_page_is_recognised() -> None:
    """It answers, so that "does not answer" would send its reader on a wrong track."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]

        outcome = await llorch(f"127.0.0.1:{port}", "status")

    assert outcome.code == 3
    assert "it does not speak gRPC; it may be the port of a web page or of the metrics" in (
        outcome.stderr
    )
    assert "does not answer" not in outcome.stderr


async def test_another_grpc_server_is_recognised(server: ScriptedServer) -> None:
    """The address of a pool-managerd is the likeliest mistake."""
    server.on("GetCapabilities", Failure(grpc.StatusCode.UNIMPLEMENTED))

    outcome = await llorch(server.address, "status")

    assert outcome.code == 1
    assert "it may be a pool-managerd" in outcome.stderr
