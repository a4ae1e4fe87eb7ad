"""Fixtures of the client's contract tests."""

import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from llamaorch_client import AsyncClient, ClientOptions
from tests.integration.clients.fake_time import FakeTime
from tests.integration.clients.scripted_server import ScriptedServer


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A scripted server on a port of its own."""
    async with ScriptedServer() as running:
        yield running


@pytest.fixture
def clock() -> FakeTime:
    """Time that passes only when the client sleeps."""
    return FakeTime()


@pytest.fixture
async def client(server: ScriptedServer, clock: FakeTime) -> AsyncIterator[AsyncClient]:
    """A client of the scripted server, on fake time."""
    options = ClientOptions(timing=clock.timing)
    async with AsyncClient(server.address, options=options) as opened:
        yield opened


@pytest.fixture
def unused_address() -> Iterator[str]:
    """An address that is taken and where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"
