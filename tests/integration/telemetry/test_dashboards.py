"""Every query of every dashboard and alert rule has an answer in a real Prometheus under load."""

import asyncio
import re
from collections.abc import Awaitable
from pathlib import Path

import pytest

from ci.lint_metrics import contract
from llamaorch_client import AsyncClient, LlamaOrchError, Sampling
from pool_managerd.config.schema import Config
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.models.tiny_gguf import write_tiny_model
from pool_managerd.server import PoolManager
from tests.integration.telemetry.both import SERVICES, WAIT_S, Both, both
from tests.integration.telemetry.load import run_client
from tests.integration.telemetry.one_gpu import OneGpu
from tests.integration.telemetry.prometheus import Prometheus, needs_prometheus, prometheus
from tests.integration.telemetry.queries import panel_queries, rule_queries

INTERVAL = "1s"

# A run of a name that no parenthesis makes a function and no brace or comma a label.
NAMES = re.compile(r"\b([a-z_]+_[a-z_]+)\b(?!\s*[=!]|\()")

# Of Prometheus itself, and what every process shows.
GIVEN = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
SUFFIXES = ("_bucket", "_count", "_sum")


def named(expression: str) -> set[str]:
    """The metrics that an expression names."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left) \([^)]*\)", "", bare)
    found = set()
    for name in NAMES.findall(bare):
        for suffix in SUFFIXES:
            name = name.removesuffix(suffix)  # noqa: PLW2901 - one after the other
        found.add(name)
    return found


@pytest.mark.parametrize("queries", [panel_queries(), rule_queries()], ids=["panels", "rules"])
def test_expressions_name_metrics_of_the_contract(queries: dict[str, str]) -> None:
    """A metric that was renamed, or never was, is not drawn as an empty panel."""
    known = {name for service in SERVICES for name in contract(service)[0]}
    # So that the search for names is not what finds nothing.
    assert sum(len(named(query)) for query in queries.values()) >= len(queries) - 1

    unknown = {place: named(query) - known - GIVEN for place, query in queries.items()}

    assert {place: names for place, names in unknown.items() if names} == {}


KV_CACHE = "kv_cache_usage_ratio"


async def _lose_an_engine(running: Both, tokens: int) -> None:
    """Nothing was delivered: it is tried again, and dies again. Else it fails at once."""
    dies = Sampling(engine_options={"mock": {"die_after_tokens": tokens}})
    async with AsyncClient(running.address) as client:
        with pytest.raises(LlamaOrchError):
            await client.run(model_id="mock", prompt="die", sampling=dies).result()


async def _lose_a_host(running: Both, model: Path, seen: Awaitable[object]) -> None:
    """One that registers with a real engine, which tells of its key-value cache, and goes.

    While it is away nothing is known of that cache, so it stays until that was `seen`.
    """
    engine = {"kind": "embedded", "model_path": str(model), "model_id": "tiny", "slots": 1}
    config = Config.model_validate(
        {
            "host_id": "passing",
            "orchestrator": running.address,
            "listen": "127.0.0.1:0",
            "devices": "cpu",
            "pools": [{"pool_id": "passing", "engine": engine}],
        }
    )
    manager = PoolManager(config, devices=CpuDevices())
    task = asyncio.create_task(manager.run())
    await seen
    manager.stop()
    await task


async def _break_things(running: Both, model: Path, seen: Awaitable[object]) -> None:
    await _lose_an_engine(running, 0)
    await _lose_an_engine(running, 1)
    await _lose_a_host(running, model, seen)
    # The processor is not read through NVML.
    running.manager._telemetry.metrics.device_read(4.0, thorough=True)


async def _load(running: Both) -> None:
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        for seed in range(3):
            tasks.create_task(run_client(running, seed))


async def _unanswered(server: Prometheus, queries: dict[str, str]) -> list[str]:
    return [place for place, query in queries.items() if not await server.query(query)]


@needs_prometheus
async def test_every_query_has_an_answer_under_load(tmp_path: Path) -> None:
    """Jobs finish, fail, expire, are cancelled and dropped, an engine dies, a GPU tells all."""
    # What is left out while it is 0 answers 0.
    panels = {place: query.replace(" > 0", " > bool 0") for place, query in panel_queries().items()}
    queries = panels | rule_queries()
    write_tiny_model(tmp_path / "tiny.gguf")
    async with both(tmp_path, devices=OneGpu(), queue={"capacity": 2}) as running:
        targets = {service: running.port(service) for service in SERVICES}
        async with prometheus(tmp_path, targets, INTERVAL) as server:
            await server.until("up == 1", 2)
            (kv_cache,) = (query for query in queries.values() if KV_CACHE in query)
            seen = server.until(kv_cache)
            await _break_things(running, tmp_path / "tiny.gguf", seen)
            left = [place for place, query in queries.items() if KV_CACHE not in query]
            async with asyncio.timeout(2 * WAIT_S):
                # Rates need counters that grew between two scrapes.
                while left:
                    await _load(running)
                    left = await _unanswered(server, {place: queries[place] for place in left})

    assert left == []
