"""How long a stream may be silent."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from faults.simulation.virtual_time import VirtualLoop
from pool_managerd.engines.http_client import Endpoint, HttpApiError, HttpClient, Silence
from pool_managerd.engines.llama_protocol import LlamaProtocol
from pool_managerd.engines.port import (
    ChatMessage,
    Failed,
    Failure,
    GenerationRequest,
    SamplingParams,
)


class Content:
    """Keeps what a reader of the answer would be told."""

    def __init__(self) -> None:
        self.heard_s = asyncio.get_running_loop().time()
        self.told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def hear(self) -> None:
        """Something came."""
        self.heard_s = asyncio.get_running_loop().time()

    def fail(self, error: Exception) -> None:
        """See `Answer`."""
        self.told.set_result(error)


def broken_off_s(breaks_s: tuple[float, ...]) -> float:
    """When an answer that may be silent for a second is broken off, given when something came."""

    async def watch() -> float:
        loop, content = asyncio.get_running_loop(), Content()
        for at_s in breaks_s:
            loop.call_at(at_s, content.hear)
        with Silence(content, 1.0):
            assert isinstance(await content.told, TimeoutError)
        return loop.time()

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(watch())
    finally:
        loop.close()


def test_an_answer_without_a_byte_is_broken_off() -> None:
    """Once its time is over, and not before."""
    assert 1.0 <= broken_off_s(()) < 1.01


def test_silence_counts_from_the_last_byte() -> None:
    """However long the answer is in all."""
    assert 4.4 <= broken_off_s((0.9, 1.7, 1.8, 2.7, 3.4)) < 4.41


@pytest.fixture
async def mute() -> AsyncIterator[Endpoint]:
    """An engine that accepts connections and never answers, as one that hangs."""
    open_here: list[asyncio.StreamWriter] = []

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_here.append(writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield Endpoint(base_url=f"http://127.0.0.1:{port}", answer_timeout_ms=50)
    for writer in open_here:
        writer.close()
    server.close()


async def test_an_engine_that_hangs_does_not_answer(mute: Endpoint) -> None:
    """What every caller handles; a bare timeout would be taken for one of the caller's own."""
    client = HttpClient(mute, lambda status, _: str(status))
    client.open()

    with pytest.raises(HttpApiError, match="/v1/models does not answer within 50 ms") as raised:
        await client.text("GET", "/v1/models")

    assert raised.value.status == 0
    await client.close()


async def test_a_conversation_that_an_engine_never_renders_is_that_of_a_dead_engine(
    mute: Endpoint,
) -> None:
    """So that the job runs elsewhere: nothing of it was delivered."""
    protocol = LlamaProtocol(mute, deterministic=False)
    protocol.open()
    protocol.serve(1, 512)
    chat = (ChatMessage("user", "hi"),)

    events = [
        event
        async for event in protocol.generate(
            GenerationRequest("r", chat, SamplingParams(seed=1, max_tokens=2))
        )
    ]

    assert [(type(event), getattr(event, "failure", None)) for event in events] == [
        (Failed, Failure.ENGINE_DIED)
    ]
    await protocol.close()
