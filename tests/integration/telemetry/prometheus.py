"""A real Prometheus, and promtool, where `make tools-prometheus` has put them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.ports import free_port

BIN = Path(__file__).parents[3] / ".build" / "prometheus" / "usr" / "bin"
WAIT_S = 30.0
# The one lint that is allowed: the contract's names end in _ms.
ALLOWED = "metric names should not contain abbreviated units"

needs_prometheus = pytest.mark.skipif(
    not (BIN / "prometheus").exists(), reason="needs Prometheus: make tools-prometheus"
)


async def promtool(*arguments: str, text: str = "") -> tuple[int, str]:
    """Runs promtool with a standard input; returns its exit code and what it says."""
    process = await asyncio.create_subprocess_exec(
        BIN / "promtool",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate(text.encode())
    assert process.returncode is not None
    return process.returncode, said.decode()


def unexpected(said: str) -> list[str]:
    """What `promtool check metrics` found beyond what is allowed."""
    return [line for line in said.splitlines() if ALLOWED not in line]


class Prometheus:
    """A running one, by its address."""

    def __init__(self, url: str, process: asyncio.subprocess.Process) -> None:
        self._url = url
        self._process = process

    async def ready(self) -> None:
        """Waits until it answers."""
        async with asyncio.timeout(WAIT_S), aiohttp.ClientSession() as session:
            while True:
                assert self._process.returncode is None, "Prometheus ended"
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with session.get(f"{self._url}/-/ready") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of an expression. Raises AssertionError when it cannot be executed."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._url}/api/v1/query", params={"query": expression}) as answer,
        ):
            body = await answer.json()
        assert body["status"] == "success", f"{expression}: {body}"
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    async def until(self, expression: str, count: int = 1) -> list[dict[str, Any]]:
        """Waits until an expression has at least so many series."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await self.query(expression)
                if len(found) >= count:
                    return found
                # Its next scrape is due within this time; there is nothing to be told of it.
                await asyncio.sleep(0.2)


@asynccontextmanager
async def prometheus(
    directory: Path, targets: Mapping[str, int], interval: str = "250ms"
) -> AsyncIterator[Prometheus]:
    """Runs one that scrapes local ports, by job name; a scrape may take as long as the interval."""
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for job, port in targets.items()
        ],
    }
    # YAML takes JSON as it is.
    (directory / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        BIN / "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        env={"GOMAXPROCS": "1"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}", process)
        await server.ready()
        yield server
    finally:
        process.terminate()
        await process.wait()
