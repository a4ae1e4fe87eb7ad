"""Scripted snapshots over gRPC: the decision they cause, the metrics and the log that show it."""

from collections.abc import Callable

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from llamaorch.orchestrator.v1 import orchestrator_service_pb2, pool_admin_service_pb2
from llamaorch.pool.v1 import snapshot_pb2
from tests.integration.orchestrator.calls import enqueue, job
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot


async def scrape(orchestrator: Orchestrator) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of the metrics endpoint by name and labels."""
    port = orchestrator.server.metrics_port
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        body = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def value(
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str
) -> float:
    """Sum of the samples of a metric that have at least these labels."""
    wanted = set(labels.items())
    return sum(v for (found, have), v in samples.items() if found == name and wanted <= have)


async def list_pools(orchestrator: Orchestrator) -> dict[str, pool_admin_service_pb2.Pool]:
    """The pools as the orchestrator sees them."""
    answer = await orchestrator.pools.ListPools(pool_admin_service_pb2.ListPoolsRequest())
    return {pool.pool_id: pool for pool in answer.pools}


async def test_a_better_snapshot_changes_the_decision_and_the_evidence(
    start_orchestrator: StartOrchestrator, entries: Callable[[str], list[dict[str, object]]]
) -> None:
    """The pool that a snapshot makes faster gets the next job; metrics and log say so."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    host = orchestrator.host()
    await host.register(
        snapshot("left", perf_tokens_per_s=100.0), snapshot("right", perf_tokens_per_s=50.0)
    )
    await enqueue(orchestrator)
    first = await host.start()
    async with host.reports() as reports:
        await reports.send(snapshot("right", version=2, perf_tokens_per_s=400.0))
        await enqueue(orchestrator)
        second = await host.start()
    samples = await scrape(orchestrator)

    placed = entries("job_placed")
    assert (first.pool_id, second.pool_id) == ("left", "right")
    assert [entry["pool_id"] for entry in placed] == ["left", "right"]
    for entry in placed:
        assert {"job_id", "replica_id", "engine", "model_id", "human"} <= entry.keys()
    assert value(samples, "tasks_enqueued_total") == 2
    assert value(samples, "pool_state", pool_id="right", state="ready") == 1


async def test_unready_pool_holds_jobs_until_a_snapshot_says_ready(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The job waits, is explained, shows in the queue metric, and starts on the READY snapshot."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    host = orchestrator.host()
    await host.register(snapshot(state=snapshot_pb2.POOL_STATE_STARTING))
    receipt = await enqueue(orchestrator)
    request = orchestrator_service_pb2.ExplainJobRequest(job_id=receipt.job_id)
    explained = await orchestrator.jobs.ExplainJob(request)
    waiting = await scrape(orchestrator)
    async with host.reports() as reports:
        await reports.send(snapshot(version=2))
        start = await host.start()
    running = await scrape(orchestrator)

    assert start.job_id == receipt.job_id
    (exclusion,) = explained.waiting_for
    assert exclusion.pool_id == "pool-a"
    assert len(exclusion.shortfalls) == 1
    assert (value(waiting, "queue_depth"), value(running, "queue_depth")) == (1, 0)


async def test_malformed_snapshot_is_refused_and_named(orchestrator: Orchestrator) -> None:
    """Free slots above the total do not reach the core; the answer names pool and field."""
    host = orchestrator.host()
    await host.register(snapshot())
    async with host.reports() as reports:
        answer = await reports.send(snapshot(version=2, slots_free=9))
    pools = await list_pools(orchestrator)

    assert [rejection.pool_id for rejection in answer.rejections] == ["pool-a"]
    assert "slots_free" in answer.rejections[0].reason
    assert pools["pool-a"].snapshot_version == 1


async def test_snapshot_waits_for_the_frames_before_it(orchestrator: Orchestrator) -> None:
    """A snapshot that includes an end not yet read frees no slot twice."""
    host = orchestrator.host()
    await host.register(snapshot(slots_total=1, slots_free=1))
    await enqueue(orchestrator)
    start = await host.start()
    waiting = await enqueue(orchestrator)
    async with host.reports() as reports:
        # The host has freed the slot and says so here before its frame about it has been read.
        await reports.send(
            snapshot(version=2, slots_total=1, slots_free=1, emitted_frame_seq=host.frame_seq + 2)
        )
        before = (await list_pools(orchestrator))["pool-a"]
        await host.started(start.handle)
        await host.finish(start.handle)
        second = await host.start()
        await host.frame()

    assert before.snapshot_version == 1
    assert before.slots_free == 0
    assert second.job_id == waiting.job_id


async def test_attempts_reported_by_a_host_count_as_taken(orchestrator: Orchestrator) -> None:
    """Slots that a snapshot shows as running are not given away, own attempt or not."""
    host = orchestrator.host()
    foreign = snapshot_pb2.RunningAttempt(job_id="foreign", attempt=1)
    await host.register(snapshot(slots_total=2, slots_free=1, running=[foreign]))
    first = await enqueue(orchestrator)
    second = await enqueue(orchestrator)
    start = await host.start()

    assert start.job_id == first.job_id
    assert (await job(orchestrator, second.job_id)).queue_position == 1
    assert (await list_pools(orchestrator))["pool-a"].slots_free == 0
