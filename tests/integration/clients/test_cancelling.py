"""Streams that are left, cancelled, read by several, or whose client is closed meanwhile."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest

from llamaorch_client import (
    AsyncClient,
    Client,
    ClientOptions,
    End,
    Event,
    JobStream,
    ResumePoint,
    RetryOptions,
    StreamOptions,
    Tokens,
    UnavailableError,
)
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.fake_time import FakeTime
from tests.integration.clients.scripted_server import Failure, Hang, ScriptedServer, Step

WAIT_S = 20.0
PIECES = ["a", "ß", "€", "𝄞", "z"]
TEXT = "".join(PIECES)


def rest_of(request: object) -> list[Step]:
    """A server that holds `PIECES`; each is a message of its own, from where the client is."""
    have = request.resume_from.text_offset  # type: ignore[attr-defined]
    known = len(TEXT.encode()[:have].decode())
    rest = [[wire.tokens(TEXT[:i], [PIECES[i]], i)] for i in range(known, len(PIECES))]
    return [[wire.started()], *rest, [wire.end(TEXT)]]


async def cancelled_after(stream: JobStream, turns: int) -> Event | None:
    """The next event; None where the wait for it was cancelled after turns of the loop."""
    task = asyncio.ensure_future(anext(stream))
    for _ in range(turns):
        if not task.done():
            await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def test_an_iteration_that_is_cancelled_anywhere_goes_on(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """LO-301: a reader that looks with a timeout loses nothing, and no end is made up."""
    server.on("Enqueue", wire.accepted()).on("StreamTokens", rest_of)
    stream = client.run(model_id="tiny", prompt="Hi")
    events: list[Event] = []
    cancels = turns = 0

    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                event = await cancelled_after(stream, turns := turns + 1)
            except StopAsyncIteration:
                break
            cancels += event is None
            if event is not None:
                events.append(event)
                turns = 0

    assert "".join(event.text for event in events if isinstance(event, Tokens)) == TEXT
    assert [type(event) for event in events].count(End) == 1
    assert isinstance(events[-1], End)
    assert cancels > 10
    assert len({call.request.spec.request_id for call in server.made("Enqueue")}) == 1


async def test_a_result_that_took_too_long_is_asked_for_again(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """Its text is whole, with what had come before the timeout."""

    def first_and_then(request: object) -> list[Step]:
        told = request.resume_from.text_offset  # type: ignore[attr-defined]
        return rest_of(request) if told else [[wire.tokens("", ["a"])], Hang()]

    server.on("StreamTokens", first_and_then)
    stream = client.stream("job-1")

    turns, offset = 0, 0
    while not offset:
        task, turns = asyncio.ensure_future(stream.result()), turns + 1
        for _ in range(turns):
            await asyncio.sleep(0)
        offset = stream.text_offset
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    result = await stream.result()

    assert result.text == TEXT


@pytest.mark.parametrize("before", ["", "aß"])
async def test_a_result_is_whole_or_none(
    server: ScriptedServer, client: AsyncClient, before: str
) -> None:
    """Who has read a part of the output would take the rest for all of it."""
    server.on("StreamTokens", rest_of)
    point = ResumePoint(attempt=1, text=before) if before else None

    begun = client.stream("job-1", point)
    async for event in begun:
        if isinstance(event, Tokens):
            break
    with pytest.raises(RuntimeError, match="a part of the output was read"):
        await begun.result()
    whole = await client.stream("job-1", point).result()

    assert whole.text == TEXT


async def test_closing_a_stream_ends_the_iteration_elsewhere(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """The task that reads goes on behind its loop; it is not cancelled."""
    server.on("StreamTokens", [[wire.tokens("", ["a"])], Hang()])
    stream, events = client.stream("job-1"), list[Event]()

    async def read() -> str:
        async for event in stream:
            events.append(event)
        return "behind the loop"

    reader = asyncio.create_task(read())
    await server.wait_for("StreamTokens")
    await stream.aclose()
    async with asyncio.timeout(WAIT_S):
        told = await reader

    assert told == "behind the loop"
    assert [event async for event in stream] == []


async def test_a_thread_ends_the_iteration_of_another(server: ScriptedServer) -> None:
    """A blocked reader has no other way out."""
    server.on("StreamTokens", Hang())

    def work() -> list[Event]:
        with Client(server.address) as client:
            stream = client.stream("job-1")
            threading.Timer(0.1, stream.close).start()
            return list(stream)

    async with asyncio.timeout(WAIT_S):
        assert await asyncio.to_thread(work) == []


async def test_a_second_reader_is_refused_and_the_first_goes_on(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """Each would get a part of the output."""
    server.on("StreamTokens", rest_of)
    stream = client.stream("job-1")
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="being read already"):
        await anext(stream)
    await first
    rest = [event async for event in stream]

    assert isinstance(rest[-1], End)


async def test_a_job_is_given_once_however_often_it_is_started(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """ORCH-3024: by two tasks at a time, and again after a start that was cancelled."""
    server.on("Enqueue", Hang(), wire.accepted())
    stream = client.run(model_id="tiny", prompt="Hi")

    begun = asyncio.ensure_future(stream.start())
    await server.wait_for("Enqueue")
    begun.cancel()
    await asyncio.wait([begun])
    receipts = await asyncio.gather(stream.start(), stream.start())

    assert receipts[0] is receipts[1]
    ids = [call.request.spec.request_id for call in server.made("Enqueue")]
    assert len(ids) == 2
    assert len(set(ids)) == 1


async def test_a_stream_that_found_no_server_can_be_read_on(
    server: ScriptedServer, clock: FakeTime
) -> None:
    """Whoever has more patience than the options say."""
    away = Failure(grpc.StatusCode.UNAVAILABLE)
    server.on("StreamTokens", [[wire.tokens("", ["a"])], away], away, away, rest_of)
    retry = RetryOptions(attempts_max=2)
    options = ClientOptions(timing=clock.timing, stream=StreamOptions(retry=retry))

    async with AsyncClient(server.address, options=options) as client:
        stream = client.stream("job-1")
        with pytest.raises(UnavailableError):
            await stream.result()
        result = await stream.result()

    assert result.text == TEXT


def calls(client: AsyncClient) -> dict[str, Callable[[], Awaitable[object]]]:
    """What can be under way when a client is closed."""

    async def all_of(items: AsyncIterator[object]) -> list[object]:
        return [item async for item in items]

    return {
        "GetJob": lambda: client.get_job("job-1"),
        "StreamTokens": lambda: client.stream("job-1").result(),
        "WatchPools": lambda: all_of(client.watch_pools()),
    }


@pytest.mark.parametrize("method", ["GetJob", "StreamTokens", "WatchPools"])
async def test_closing_a_client_cancels_nobody(server: ScriptedServer, method: str) -> None:
    """A task that ends as cancelled although nobody cancelled it is missed by every group."""
    server.on(method, Hang())
    client = await AsyncClient(server.address).__aenter__()
    call = calls(client)[method]
    stale = client.stream("job-1")
    under_way = asyncio.ensure_future(call())
    await server.wait_for(method)

    await client.close()

    with pytest.raises(RuntimeError, match="the client was closed during the call"):
        await under_way
    with pytest.raises(RuntimeError, match="not open"):
        await call()
    with pytest.raises(RuntimeError, match="the client is closed"):
        await anext(stale)


async def test_a_cancel_of_the_caller_is_its_own(server: ScriptedServer) -> None:
    """Also where the client is closed in the same moment."""
    server.on("GetJob", Hang())
    client = await AsyncClient(server.address).__aenter__()
    under_way = asyncio.ensure_future(client.get_job("job-1"))
    await server.wait_for("GetJob")

    under_way.cancel()
    await client.close()
    await asyncio.wait([under_way])

    assert under_way.cancelled()
