"""A fresh journal of each kind, and an adapter of each kind before a server of frames."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator_core.store.port import Store
from tests.conformance.attached import Attached
from tests.conformance.engine_frames import ADAPTERS, FrameServer, adapter, frame_server, frames_of
from tests.conformance.media import KINDS, Medium, medium_of


@pytest.fixture(params=KINDS)
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Medium:
    """A fresh medium of each kind."""
    return medium_of(request.param, tmp_path)


@pytest.fixture
async def store(medium: Medium) -> AsyncIterator[Store]:
    """An open, empty journal."""
    store = medium.store()
    await store.open()
    yield store
    await store.close()


@pytest.fixture(params=ADAPTERS)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, FrameServer]]:
    """A server with the frames of each engine."""
    async with frame_server(request.param) as running:
        yield request.param, running


@pytest.fixture
async def attached(server: tuple[str, FrameServer]) -> AsyncIterator[Attached]:
    """Its adapter, started."""
    name, running = server
    engine = adapter(name, running.base_url)
    await engine.start()
    yield Attached(name, running, engine, frames_of(name))
    await engine.stop()
