"""The Python examples of the clients' README run as they stand, but for the address."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.integration.orchestrator.calls import ready_host
from tests.integration.orchestrator.conftest import Orchestrator

README = Path(__file__).resolve().parents[3] / "clients" / "README.md"
ADDRESS = "127.0.0.1:7070"
_BLOCK = r"^```python\n(.*?)^```"
SNIPPETS = re.findall(_BLOCK, README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
WAIT_S = 20.0


@pytest.fixture
async def answering(orchestrator: Orchestrator) -> AsyncIterator[str]:
    """The address of a server whose pool answers each job with "Hello"."""
    host = await ready_host(orchestrator)

    async def answer() -> None:
        while True:
            start = await host.start()
            await host.started(start.handle)
            await host.tokens(start.handle, "Hello")
            await host.finish(start.handle)

    task = asyncio.create_task(answer())
    yield str(orchestrator.server.address)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
async def test_an_example_of_the_client_runs(answering: str, number: int) -> None:
    """Each alone, with what it imports."""
    code = SNIPPETS[number]
    assert ADDRESS in code
    printed = io.StringIO()

    def run() -> None:
        with redirect_stdout(printed):
            exec(compile(code.replace(ADDRESS, answering), str(README), "exec"), {})  # noqa: S102

    async with asyncio.timeout(WAIT_S):
        await asyncio.to_thread(run)

    assert "Hello" in printed.getvalue()


def test_there_are_examples() -> None:
    """Of the asynchronous client, the blocking one, and many jobs on a stream."""
    assert len(SNIPPETS) == 3
