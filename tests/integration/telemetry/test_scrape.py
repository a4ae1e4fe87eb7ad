"""A live Prometheus endpoint keeps the contract of ci/metrics.lint.json. ORCH-3028."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from orchestrator_core.config import load_config
from orchestrator_core.telemetry.observer import Telemetry
from tests.integration.telemetry.driver import Driver, OneGpu

CONTRACT = Path(__file__).parents[3] / "ci" / "metrics.lint.json"


@asynccontextmanager
async def endpoint() -> AsyncIterator[tuple[Driver, str]]:
    """Telemetry with a scrape endpoint on a free port, and what feeds it."""
    config = load_config(None, {}, ["metrics_listen=127.0.0.1:0"])
    telemetry = Telemetry.from_config(config, OneGpu())
    driver = Driver(telemetry)
    port = await telemetry.start(driver.core)
    try:
        yield driver, f"http://127.0.0.1:{port}/metrics"
    finally:
        await telemetry.shutdown()
        await telemetry.shutdown()


async def scrape(url: str, accept: str = "text/plain") -> str:
    """One scrape, as Prometheus does it."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers={"Accept": accept}) as answer,
    ):
        assert answer.status == 200
        return await answer.text()


def families(text: str) -> dict[str, Metric]:
    """Families by the name of the contract: counters with their _total."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
    }


async def test_every_series_of_a_scrape_keeps_the_contract() -> None:
    """Names, types, labels and buckets, of each metric of the contract, and no other metric."""
    contract = {row["name"]: row for row in json.loads(CONTRACT.read_text("utf-8"))["metrics"]}

    async with endpoint() as (driver, url):
        driver.everything()
        found = families(await scrape(url))

    assert found.keys() == contract.keys()
    for name, family in found.items():
        row = contract[name]
        assert family.type == row["type"], name
        assert family.samples, name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(row["labels"]), name
        bounds = {float(s.labels["le"]) for s in family.samples if "le" in s.labels}
        assert bounds - {float("inf")} == set(row.get("buckets", [])), name


async def test_a_scrape_shows_the_present_state() -> None:
    """Gauges are read when they are asked for."""
    async with endpoint() as (driver, url):
        before = families(await scrape(url))
        driver.everything()
        after = families(await scrape(url))

    assert "pool_state" not in before
    ready = [s for s in after["pool_state"].samples if s.labels["state"] == "ready"]
    assert [sample.value for sample in ready] == [1.0, 1.0]
    assert [s.value for s in after["vram_used_bytes"].samples] == [2048.0]


async def test_openmetrics_is_served_to_who_asks_for_it() -> None:
    """Content negotiation as Prometheus does it."""
    async with endpoint() as (driver, url):
        driver.everything()
        text = await scrape(url, "application/openmetrics-text; version=1.0.0")

    assert text.rstrip().endswith("# EOF")
    assert "tasks_enqueued_total{" in text


async def test_only_metrics_are_served() -> None:
    """Other paths and methods are refused."""
    async with endpoint() as (_, url), aiohttp.ClientSession() as session:
        async with session.get(url.removesuffix("metrics")) as answer:
            assert answer.status == 404
        async with session.post(url, data=b"x") as answer:
            assert answer.status == 405


async def test_without_an_address_there_is_no_endpoint() -> None:
    """Off by default; start and shutdown are still fine."""
    telemetry = Telemetry.from_config(load_config(None, {}))

    assert await telemetry.start(Driver(telemetry).core) is None
    await telemetry.shutdown()
    await telemetry.shutdown()


async def test_an_address_in_use_is_an_error() -> None:
    """The operator hears of it at the start."""
    async with endpoint() as (driver, url):
        port = url.removesuffix("/metrics").rpartition(":")[2]
        config = load_config(None, {}, [f"metrics_listen=127.0.0.1:{port}"])
        second = Telemetry.from_config(config)

        with pytest.raises(OSError, match="address already in use"):
            await second.start(driver.core)
        await second.shutdown()
