"""One request and its answer, from a server that writes what it is told to. ORCH-3054."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from pool_managerd.engines.http_answer import (
    HEAD_BYTES_MAX,
    Answer,
    AnswerError,
    Server,
    UnreachableError,
)

TIMEOUT_S = 10.0
BODY_MAX = 100
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Line:
    """A connection as its server sees it."""

    def __init__(self) -> None:
        self.asked = b""
        self.left = asyncio.Event()
        self._gone = asyncio.Event()
        self._writer: asyncio.Future[asyncio.StreamWriter] = (
            asyncio.get_running_loop().create_future()
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads the request, hands the connection over and waits for the client to leave."""
        self.asked = await reader.readuntil(b"\r\n\r\n")
        self._writer.set_result(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.left.set()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self._gone.set()

    async def gone(self) -> None:
        """Returns once the connection is closed on this side too."""
        await self._gone.wait()

    async def write(self, *parts: bytes) -> None:
        """Sends the parts together."""
        (await self._writer).write(b"".join(parts))

    async def close(self) -> None:
        """Ends the connection after what was written."""
        (await self._writer).close()


class Taken:
    """What an answer passed on."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.refused: Exception | None = None
        self._news = asyncio.Event()

    def take(self, part: bytes) -> None:
        """See `Answer`."""
        if self.refused is not None:
            raise self.refused
        self.parts.append(part)
        self._news.set()

    async def until(self, count: int) -> None:
        """Returns once so many parts have come."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.parts) < count:
                await self._news.wait()
                self._news.clear()


@contextlib.asynccontextmanager
async def asked(taken: Taken | None = None) -> AsyncIterator[tuple[Line, Answer]]:
    """A server, and a request that it has got."""
    line = Line()
    listening = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}/prefix/", {"Authorization": "Bearer k"}, TIMEOUT_S)
    answer = Answer(taken.take if taken else None, BODY_MAX)
    async with listening, asyncio.timeout(TIMEOUT_S):
        await server.connect(answer)
        answer.send(server.request("POST", "/path", b"{}", {"traceparent": "t"}))
        try:
            yield line, answer
        finally:
            answer.close()
            await line.gone()


async def test_a_request_says_where_to_what_and_by_whom() -> None:
    """Path below the prefix of the address, length, key and the caller's headers."""
    async with asked() as (line, answer):
        await line.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await answer.end()

    first, *headers = line.asked.decode().split("\r\n")
    assert first == "POST /prefix/path HTTP/1.1"
    assert {"Content-Length: 2", "Authorization: Bearer k", "traceparent: t"} <= set(headers)


async def test_a_part_is_passed_on_before_the_next_one_is_written() -> None:
    """Nothing waits for the end of the answer."""
    taken = Taken()
    async with asked(taken) as (line, answer):
        for number, part in enumerate((b"one", b"two"), 1):
            await line.write(CHUNKED if number == 1 else b"", b"3\r\n" + part + b"\r\n")
            await taken.until(number)
        assert not answer.over
        await line.write(b"0\r\n\r\n")
        await answer.end()

    assert taken.parts == [b"one", b"two"]


async def test_an_answer_of_another_status_is_kept() -> None:
    """An error's body is read as a whole, and not taken for tokens."""
    taken = Taken()
    async with asked(taken) as (line, answer):
        await line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await line.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nlater")

        assert await answer.status() == 503
        assert await answer.body() == b"later"

    assert taken.parts == []


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """As HTTP/1.0 servers do it."""
    async with asked() as (line, answer):
        await line.write(b"HTTP/1.0 200 OK\r\n\r\nall")
        await line.close()

        assert await answer.body() == b"all"


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", "broke"),
        (CHUNKED + b"9\r\ncut", "broke"),
        (b"HTTP/1.1 200", "broke"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP"),
        (CHUNKED + b"xyz\r\n", "no HTTP"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_BYTES_MAX, "headers exceed"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (BODY_MAX + 1), "too long"),
    ],
    ids=["length", "chunk", "status", "banner", "size", "upgrade", "headers", "body"],
)
async def test_what_is_no_answer_says_why(sent: bytes, reason: str) -> None:
    """Cut off, not HTTP, or without bound."""
    async with asked() as (line, answer):
        await line.write(sent)
        await line.close()

        with pytest.raises(AnswerError, match=reason):
            await answer.end()


async def test_what_the_taker_raises_ends_the_answer() -> None:
    """And nothing more is passed on."""
    taken = Taken()
    taken.refused = ValueError("no frame")
    async with asked(taken) as (line, answer):
        await line.write(CHUNKED, b"3\r\none\r\n3\r\ntwo\r\n")

        with pytest.raises(ValueError, match="no frame"):
            await answer.end()
        await line.left.wait()

    assert taken.parts == []


async def test_closing_in_the_middle_reaches_the_server() -> None:
    """This is what cancels; nothing is passed on afterwards."""
    taken = Taken()
    async with asked(taken) as (line, answer):
        await line.write(CHUNKED, b"3\r\none\r\n")
        await taken.until(1)
        answer.close()
        await line.write(b"3\r\ntwo\r\n")
        await line.left.wait()

    assert taken.parts == [b"one"]


async def test_a_pause_holds_the_rest_back() -> None:
    """Until reading goes on."""
    taken = Taken()
    async with asked(taken) as (line, answer):
        await line.write(CHUNKED, b"3\r\none\r\n")
        await taken.until(1)
        answer.pause()
        await line.write(b"3\r\ntwo\r\n")
        await asyncio.sleep(0.05)
        assert taken.parts == [b"one"]
        answer.resume()
        await taken.until(2)


async def test_nobody_there_is_told_from_a_broken_connection() -> None:
    """The request was certainly not heard."""
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]

    with pytest.raises(UnreachableError):
        await Server(f"http://127.0.0.1:{port}", {}, TIMEOUT_S).connect(Answer(None, BODY_MAX))


@pytest.mark.parametrize(("url", "key"), [("http://", "k"), ("http://h", "k\r\nX: y")])
def test_an_address_without_a_host_or_a_broken_key_is_refused(url: str, key: str) -> None:
    """Neither is sent anywhere."""
    with pytest.raises(ValueError, match=r"host|line breaks"):
        Server(url, {"Authorization": key}, TIMEOUT_S)
