"""A live Prometheus endpoint keeps the contract of ci/metrics.lint.json. ORCH-3028."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import pytest

from ci.lint_metrics import contract, families, problems
from orchestrator_core.config.live import ReloadReport
from orchestrator_core.config.loading import load_config
from orchestrator_core.telemetry.telemetry import Telemetry
from tests.integration.telemetry.both import scrape
from tests.integration.telemetry.driver import FACTS, Driver, OneGpu
from tests.integration.telemetry.prometheus import needs_prometheus, promtool, unexpected


@asynccontextmanager
async def endpoint() -> AsyncIterator[tuple[Driver, str]]:
    """Telemetry with a scrape endpoint on a free port, and what feeds it."""
    config = load_config(None, {}, ["metrics_listen=127.0.0.1:0"])
    telemetry = Telemetry.from_config(config, OneGpu())
    driver = Driver(telemetry)
    port = await telemetry.start(driver.core, lambda: FACTS)
    try:
        yield driver, f"http://127.0.0.1:{port}/metrics"
    finally:
        await telemetry.shutdown()
        await telemetry.shutdown()


_HISTOGRAM = """# TYPE orchd_event_loop_lag_ms histogram
orchd_event_loop_lag_ms_bucket{le="7"} 1
orchd_event_loop_lag_ms_bucket{le="+Inf"} 1
orchd_event_loop_lag_ms_sum 1
orchd_event_loop_lag_ms_count 1"""


class _Opening:
    """A call of which only the code matters."""

    def code(self) -> int:
        return 0


async def _a_call_and_a_stream(telemetry: Telemetry) -> None:
    """Answers one call, in which a scrape would find the stream open; it stays at 0 after it."""

    async def answer(_: Any, __: Any) -> str:
        return "answer"

    handlers = {
        "Get": grpc.unary_unary_rpc_method_handler(answer),
        "Follow": grpc.unary_stream_rpc_method_handler(answer),
    }
    service = telemetry.watched(grpc.method_handlers_generic_handler("test.Service", handlers))
    for method in handlers:
        handler = service.service(_Details(f"/test.Service/{method}"))
        assert handler is not None
        behaviour: Any = handler.unary_unary or handler.unary_stream
        assert await behaviour(None, _Opening()) == "answer"


class _Details(grpc.HandlerCallDetails):
    """Names the method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


async def test_every_series_of_a_scrape_keeps_the_contract() -> None:
    """Names, types, labels and buckets, of each metric of the contract, and no other metric."""
    async with endpoint() as (driver, url):
        driver.everything()
        await _a_call_and_a_stream(driver.telemetry)
        driver.telemetry._metrics.service.loop_was_late(3.0)
        driver.telemetry.config_reloaded(ReloadReport("orchestratord.toml"), 1_000)
        text = await scrape(url)

    rows, _ = contract("orchestratord")
    assert problems("orchestratord", text) == []
    assert families(text).keys() == rows.keys()
    assert all(family.samples for family in families(text).values())


@needs_prometheus
async def test_promtool_finds_nothing_but_the_unit() -> None:
    """In every metric of the contract."""
    async with endpoint() as (driver, url):
        driver.everything()
        await _a_call_and_a_stream(driver.telemetry)
        _, said = await promtool("check", "metrics", text=await scrape(url))

    assert unexpected(said) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("# TYPE queue_length gauge\nqueue_length 1", "queue_length: not in the contract"),
        ("# TYPE orchd_sessions counter\norchd_sessions_total 1", "orchd_sessions_total: not in"),
        ('# TYPE orchd_sessions gauge\norchd_sessions{a="b"} 1', "has the labels ['a']"),
        (
            "# TYPE pool_state gauge\n"
            + "\n".join(f'pool_state{{pool_id="p",state="s{n}"}} 1' for n in range(9)),
            "has 9 values of state, more than 8",
        ),
        (
            _HISTOGRAM,
            "has the buckets [7.0, inf]",
        ),
    ],
)
def test_the_linter_names_what_breaks_the_contract(line: str, problem: str) -> None:
    """A linter that finds nothing in anything would prove nothing."""
    assert problem in "\n".join(problems("orchestratord", line + "\n"))


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

        with pytest.raises(OSError, match=r"metrics_listen: .* Address already in use"):
            await second.start(driver.core)
        await second.shutdown()
