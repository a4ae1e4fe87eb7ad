"""The ports for people and monitors of both services bound whoever connects. ORCH-3035."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType

import aiohttp
import pytest
from aiohttp import web

from orchestrator_core.telemetry import http as of_the_orchestrator
from pool_managerd.telemetry import http as of_a_host

WAIT_S = 10.0
LARGE = b"x" * (32 << 20)


@pytest.fixture(params=[of_the_orchestrator, of_a_host], ids=["orchestratord", "pool-managerd"])
def http(request: pytest.FixtureRequest) -> ModuleType:
    """The module of a service: neither may import the other's."""
    found = request.param
    assert isinstance(found, ModuleType)
    return found


@asynccontextmanager
async def port(http: ModuleType, given_up: asyncio.Event | None = None) -> AsyncIterator[int]:
    """A port that serves a small and a large answer; tells when the large one is done with."""

    async def small(request: web.Request) -> web.StreamResponse:
        return await http.send(request, b"small", "text/plain")

    async def large(request: web.Request) -> web.StreamResponse:
        answer = await http.send(request, LARGE, "text/plain")
        if given_up is not None:
            given_up.set()
        return answer

    served = http.HttpPort()
    routes = [web.get("/small", small), web.get("/large", large)]
    try:
        yield await served.start("127.0.0.1:0", routes)
    finally:
        await served.stop()
        await served.stop()


async def connect(number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection."""
    return await asyncio.open_connection("127.0.0.1", number)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Everything up to the end of a connection, however it ends."""
    got = b""
    async with asyncio.timeout(WAIT_S):
        try:
            while part := await reader.read(1 << 20):
                got += part
        except ConnectionResetError:
            pass
    return got


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("POST", 405)])
async def test_only_reading_is_possible(http: ModuleType, method: str, status: int) -> None:
    """Whatever the path; a HEAD is a GET without the body."""
    async with port(http) as number, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{number}/small"
        async with session.request(method, url) as answer:
            body = await answer.read()

    assert answer.status == status
    assert (body == b"small") == (method == "GET")


async def test_another_name_for_this_machine_is_refused(http: ModuleType) -> None:
    """A page whose name was rebound to the loopback address reads nothing, from any path."""
    async with port(http) as number, aiohttp.ClientSession() as session:
        for path in ("/small", "/nowhere"):
            headers = {"Host": f"evil.example:{number}"}
            url = f"http://127.0.0.1:{number}{path}"
            async with session.get(url, headers=headers) as answer:
                assert answer.status == 421
                assert "127.0.0.1" in await answer.text()


async def test_a_reader_that_has_gone_is_no_error(
    http: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """A monitor that gave up while its answer was made leaves nothing in the log."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        asked.set()
        while request.transport is not None:  # noqa: ASYNC110 - a lost connection tells nobody
            await asyncio.sleep(0)
        answer = await http.send(request, b"late", "text/plain")
        answered.set()
        return answer

    served = http.HttpPort()
    number = await served.start("127.0.0.1:0", [web.get("/slow", slow)])
    async with asyncio.timeout(WAIT_S):
        _, writer = await connect(number)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asked.wait()
        writer.transport.abort()
        await answered.wait()
    await served.stop()

    assert not caplog.records


async def test_a_reader_that_stops_reading_is_cut_off(
    http: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds its connection for so long and no longer, and gets no whole answer."""
    monkeypatch.setattr(http, "SEND_S", 0.2)
    given_up = asyncio.Event()
    async with port(http, given_up) as number:
        reader, writer = await connect(number)
        writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            await given_up.wait()
        got = await rest(reader)
        writer.close()

    assert 0 < len(got) < len(LARGE)


async def test_a_connection_without_a_request_ends(
    http: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent ones, and those whose request never ends, are closed after a while."""
    monkeypatch.setattr(http, "SILENCE_S", 0.2)
    async with port(http) as number:
        (silent, one), (slow, other) = await connect(number), await connect(number)
        other.write(b"GET /small HTTP/1.1\r\nHost: local")
        answers = await rest(silent), await rest(slow)
        one.close()
        other.close()

    assert answers == (b"", b"")


async def test_connections_are_bounded(http: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed at once; when one leaves, the next is served."""
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 2)
    request = b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with port(http) as number:
        held = [await connect(number) for _ in range(2)]
        for reader, writer in held:
            writer.write(request)
            await reader.readuntil(b"small")
        refused, third = await connect(number)
        nothing = await rest(refused)
        held[0][1].close()
        answer = b""
        async with asyncio.timeout(WAIT_S):
            while b"small" not in answer:
                again, fourth = await connect(number)
                fourth.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                answer = await rest(again)
                fourth.close()
        third.close()
        held[1][1].close()

    assert nothing == b""
    assert answer.startswith(b"HTTP/1.1 200")


async def test_an_address_that_is_taken_names_the_setting(http: ModuleType) -> None:
    """In place of the number of an error."""
    first, second = http.HttpPort(), http.HttpPort()
    taken = await first.start("127.0.0.1:0", [])

    with pytest.raises(OSError, match=rf"metrics_listen: cannot listen on 127\.0\.0\.1:{taken}: "):
        await second.start(f"127.0.0.1:{taken}", [])
    await first.stop()
