"""Jobs of the client library's exchange."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    Event,
    Exchange,
    ExchangeJob,
    RetryOptions,
    StreamOptions,
    Tokens,
)
from tests.integration.orchestrator.scripted_host import ScriptedHost

WAIT_S = 20.0
QUICK = RetryOptions(attempts_max=50, backoff_initial_ms=10, backoff_max_ms=50)
OPTIONS = ClientOptions(stream=StreamOptions(retry=QUICK))


@asynccontextmanager
async def exchange(target: object, options: ClientOptions = OPTIONS) -> AsyncIterator[Exchange]:
    """An open exchange."""
    async with AsyncClient(str(target), options=options) as client, client.exchange() as opened:
        yield opened


async def begin(host: ScriptedHost, *pieces: str) -> int:
    """Starts the next attempt and sends output; returns its handle."""
    start = await host.start()
    await host.started(start.handle)
    for piece in pieces:
        await host.tokens(start.handle, piece)
    return start.handle


async def until(job: ExchangeJob, kind: type[Event]) -> Event:
    """The next event of a kind."""
    async with asyncio.timeout(WAIT_S):
        async for event in job:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__} came")


async def text_of(job: ExchangeJob) -> str:
    """What of its output was not read yet."""
    return "".join([event.text async for event in job if isinstance(event, Tokens)])
