"""A server that answers like Triton."""

from collections.abc import AsyncIterator

import pytest

from tests.conformance.triton_replay import HELLO, Replay, replay_server


@pytest.fixture
async def replay() -> AsyncIterator[Replay]:
    """A server whose answers the test sets."""
    async with replay_server() as replay:
        replay.responses = HELLO
        yield replay
