"""Both services as real processes with the real embedded engine on a generated model."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from demo.services import PoolOptions, Stack, StackOptions

StartStack = Callable[..., Awaitable[Stack]]


@pytest.fixture
async def start_stack(tmp_path: Path) -> AsyncIterator[StartStack]:
    """Starts stacks with any options; all are stopped at the end of the test."""
    async with AsyncExitStack() as cleanup:

        async def start(slots: int = 2, *, deterministic: bool = False, **options: object) -> Stack:
            pools = (PoolOptions(slots=slots, deterministic=deterministic),)
            stack = Stack(StackOptions(tmp_path, pools=pools, **options))  # type: ignore[arg-type]
            cleanup.push_async_callback(stack.stop)
            await stack.start()
            return stack

        yield start
