"""Both services as Prometheus and promtool see them. ORCH-3028."""

from pathlib import Path

import pytest

from ci.lint_metrics import contract, families, problems
from llamaorch_client import AsyncClient, LlamaOrchError, Sampling
from tests.integration.telemetry.both import SERVICES, Both, both, total
from tests.integration.telemetry.one_gpu import OneGpu
from tests.integration.telemetry.prometheus import (
    needs_prometheus,
    prometheus,
    promtool,
    unexpected,
)


async def _run_jobs(running: Both, count: int = 3) -> None:
    async with AsyncClient(running.address) as client:
        for _ in range(count):
            await client.run(model_id="mock", prompt="go").result()


async def test_live_scrapes_of_both_services_keep_the_contract(tmp_path: Path) -> None:
    """Of real jobs, on a real journal: no name, label or bucket that the contract does not have."""
    async with both(tmp_path) as running:
        await _run_jobs(running)
        texts = {service: await running.text(service) for service in SERVICES}

    assert {service: problems(service, text) for service, text in texts.items()} == {
        service: [] for service in SERVICES
    }
    shown = {service: families(text).keys() for service, text in texts.items()}
    # Reading a GPU, and what happens only when something breaks, has no series here.
    assert {"orchd_commit_time_ms", "orchd_journal_bytes", "orchd_streams_open"} <= (
        shown["orchestratord"]
    )
    assert {"poold_tokens_out_total", "poold_link_up", "poold_engine_start_ms"} <= (
        shown["pool-managerd"]
    )


async def test_a_host_shows_every_metric_of_its_contract(tmp_path: Path) -> None:
    """With a GPU that reports everything, after an engine has died."""
    async with both(tmp_path, devices=OneGpu()) as running:
        await _run_jobs(running, 1)
        dies = Sampling(engine_options={"mock": {"die_after_tokens": 1}})
        async with AsyncClient(running.address) as client:
            with pytest.raises(LlamaOrchError):
                await client.run(model_id="mock", prompt="die", sampling=dies).result()
            # Once it is READY again.
            await client.run(model_id="mock", prompt="go").result()
        metrics = running.manager._telemetry.metrics
        metrics.attempt_refused("mock", "no_slot")
        metrics.device_read(4.0, thorough=True)
        metrics.xid("GPU-1", 79)
        metrics.loop_was_late(1.0)
        await running.manager._live.reload(running.manager._telemetry)
        text = await running.text("pool-managerd")
        orchestrators = families(await running.text("orchestratord"))

    rows, _ = contract("pool-managerd")
    found = families(text)
    assert problems("pool-managerd", text) == []
    assert found.keys() == rows.keys()
    assert all(family.samples for family in found.values())
    device = {"device": "GPU-1"}
    assert total(found, "poold_device_power_watts", **device) == 250.5
    assert total(found, "poold_device_slowed", **device, reason="software_thermal") == 1
    assert total(found, "poold_device_slowed", **device, reason="power_brake") == 0
    assert total(found, "poold_tokens_out_total", pool_id="mock") == 2 * 16 + 1
    assert total(found, "poold_engine_restarts_total", reason="engine_exited") == 1
    assert total(orchestrators, "engine_restarts_total", pool_id="mock") == 1
    assert total(orchestrators, "gpu_power_watts", **device) == 250.5
    assert total(orchestrators, "gpu_health", **device, state="ok") == 1


@needs_prometheus
@pytest.mark.parametrize("service", SERVICES)
async def test_promtool_finds_nothing_but_the_unit(service: str, tmp_path: Path) -> None:
    """`promtool check metrics` of a live scrape."""
    async with both(tmp_path) as running:
        await _run_jobs(running)
        _, said = await promtool("check", "metrics", text=await running.text(service))

    assert unexpected(said) == []


@needs_prometheus
async def test_a_real_prometheus_scrapes_both(tmp_path: Path) -> None:
    """It takes every series that is there, and computes with them."""
    async with both(tmp_path) as running:
        await _run_jobs(running)
        targets = {service: running.port(service) for service in SERVICES}
        async with prometheus(tmp_path, targets) as server:
            await server.until("up == 1", 2)
            (finished,) = await server.until("sum(tasks_finished_total) == 3")
            (p99,) = await server.query(
                "histogram_quantile(0.99, sum by (le) (admission_latency_ms_bucket))"
            )
            (lost,) = await server.query(
                "sum(tasks_enqueued_total) - sum(tasks_finished_total) - sum(tasks_live)"
            )
            (age,) = await server.query('time() - process_start_time_seconds{job="orchestratord"}')
            taken = {series["metric"]["__name__"] for series in await server.query('{job!=""}')}

    assert float(finished["value"][1]) == 3
    assert float(p99["value"][1]) > 0
    assert float(lost["value"][1]) == 0
    assert float(age["value"][1]) > 0
    for service in SERVICES:
        rows, _ = contract(service)
        counters = {name for name, row in rows.items() if row["type"] == "counter"}
        assert taken & counters, service
