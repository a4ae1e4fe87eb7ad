"""A server that answers like Triton, the adapter before it, and processes that are marked."""

from collections.abc import AsyncIterator

import pytest

from pool_managerd.engines.triton import TritonEngine
from tests.conformance.triton_replay import HELLO, Replay, engine_of, replay_server
from tests.unit.pool_managerd.engines.marked import Marked


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    """A server whose answers the test sets."""
    async with replay_server() as replay:
        replay.responses = HELLO
        yield replay


@pytest.fixture
async def engine(replay: Replay) -> AsyncIterator[TritonEngine]:
    """An adapter attached to the replay server, with its gauge."""
    engine = engine_of(replay, metrics_url=replay.metrics_url, busy_metric="running")
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def marked() -> AsyncIterator[Marked]:
    """A mark; whoever still carries it after the test is killed."""
    marked = Marked()
    yield marked
    for process in marked.alive():
        process.kill()
