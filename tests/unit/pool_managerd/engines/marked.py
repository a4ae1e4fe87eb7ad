"""Engines that are launched, and all processes that came of them."""

import asyncio
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from pool_managerd.config.schema import PoolTable
from pool_managerd.engines.launched import LaunchedEngine
from pool_managerd.engines.port import Engine, GenerationRequest, PreloadError, SamplingParams
from pool_managerd.factory import make_engine

SERVER = str(Path(__file__).parents[4] / "benchmarks" / "load" / "llama_engine.py")
WAIT_S = 20.0
MARK = "LLAMAORCH_TEST_MARK"


class Marked:
    """All processes that carry one mark in their environment."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def alive(self) -> list[psutil.Process]:
        """Those that live now; one that became a zombie is dead."""
        return [process for process in psutil.process_iter() if self._has(process)]

    def _has(self, process: psutil.Process) -> bool:
        try:
            return (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(MARK) == self.mark
            )
        except psutil.Error:
            return False

    async def gone(self) -> None:
        """Waits until none lives."""
        async with asyncio.timeout(WAIT_S):
            while self.alive():  # noqa: ASYNC110 - nobody tells of the end of foreign processes
                await asyncio.sleep(0.02)


def table(marked: Marked, *arguments: str, **launch: object) -> PoolTable:
    """A pool whose server is launched."""
    return PoolTable.model_validate(
        {
            "pool_id": "p",
            "devices": launch.pop("devices", []),
            "engine": {
                "kind": "llama_server",
                "model_id": "m",
                "model_path": launch.pop("model_path", ""),
                "launch": {
                    "command": [sys.executable, "-S", SERVER, "--port", "{port}", *arguments],
                    "env": {MARK: marked.mark, "LLAMA_API_KEY": "{api_key}"},
                    "attach_timeout_ms": 2_000,
                    **launch,
                },
            },
        }
    )


def launched(marked: Marked, *arguments: str, **launch: object) -> LaunchedEngine:
    """An engine that is not started."""
    engine = make_engine(table(marked, *arguments, **launch), "")
    assert isinstance(engine, LaunchedEngine)
    return engine


def request(prompt: str = "hello", tokens: int = 3) -> GenerationRequest:
    """A short generation."""
    return GenerationRequest("r-1", prompt, SamplingParams(seed=1, max_tokens=tokens))


async def failure_of(engine: Engine) -> PreloadError:
    """The failure of a start."""
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(PreloadError) as raised:
            await engine.start()
    return raised.value
