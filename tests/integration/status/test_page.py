"""The status page without a browser: what it tells, to whom, how often. HME-050."""

import asyncio
import json

import msgspec

from llamaorch.orchestrator.v1 import job_pb2, pool_admin_service_pb2
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from orchestrator_core.status.reading import POOLS_SHOWN, StatusReader
from tests.integration.orchestrator.calls import all_events, enqueue
from tests.integration.orchestrator.conftest import StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot
from tests.integration.orchestrator.stores import FailingStore
from tests.integration.status.page_calls import base, get, now

CANARY = "canary-8c1f"
WAIT_S = 20.0
GIB = 1 << 30
GPU = snapshot_pb2.Device(
    device_id="GPU-1",
    kind=snapshot_pb2.DEVICE_KIND_GPU,
    name="NVIDIA H200",
    index=1,
    memory_total_bytes=8 * GIB,
    memory_used_bytes=2 * GIB,
    utilization_ratio=0.0,
    temperature_celsius=61,
    power_milliwatts=350_000,
    health=snapshot_pb2.DEVICE_HEALTH_OK,
)
BARE = snapshot_pb2.Device(device_id="GPU-0", kind=snapshot_pb2.DEVICE_KIND_GPU, index=0)


async def test_it_tells_who_waits_who_runs_and_what_ended(
    start_orchestrator: StartOrchestrator,
) -> None:
    """One job in each section, with its numbers; counts go with them."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    host = orchestrator.host()
    await host.register(snapshot(slots_total=2, slots_free=2, devices=[GPU]))
    ended = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.finish(start.handle, job_pb2.FINISH_REASON_LENGTH)
    await all_events(orchestrator, ended.job_id)
    running = await enqueue(orchestrator, expected_tokens=10, session_id="talk")
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "a", "b", "c")
    await enqueue(orchestrator)
    waiting = await enqueue(orchestrator, priority=job_pb2.PRIORITY_BATCH)
    await host.start()

    told = await now(orchestrator)

    assert told["queue"] | {"policy": ""} == {
        "interactive": 0,
        "batch": 1,
        "capacity": 100,
        "policy": "",
    }
    (queued,) = told["waiting"]
    assert (queued["job_id"], queued["position"]) == (waiting.job_id, 1)
    assert (queued["priority"], queued["on_time_ratio"]) == ("batch", None)
    assert queued["starts_in_ms"] is not None
    first = told["running"][0]
    assert (first["job_id"], first["session_id"]) == (running.job_id, "talk")
    assert (first["pool_id"], first["state"], first["expected_tokens"]) == ("pool-a", "running", 10)
    assert first["pieces"] in (0, 3)
    assert told["running"][1]["state"] == "dispatched"
    assert told["running"][1]["runs_for_ms"] is None
    (over,) = told["ended"]
    assert (over["job_id"], over["state"], over["why"]) == (ended.job_id, "finished", "length")
    assert (told["running_total"], told["ended_total"]) == (2, 1)
    assert (told["pools_ready"], told["slots_total"], told["slots_free"]) == (1, 2, 0)


async def test_what_hardware_does_not_report_is_null(start_orchestrator: StartOrchestrator) -> None:
    """Nothing becomes 0, and a 0 stays one; a host that is gone has no readings at all."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    host = orchestrator.host()
    await host.register(snapshot("p", devices=[GPU, BARE]), snapshot("q", devices=[GPU]))

    told = await now(orchestrator)
    await host.close()
    runtime = orchestrator.server.runtime
    async with asyncio.timeout(WAIT_S):
        while runtime.core.pools["p"].connected:
            await runtime.next_step()
    lost = msgspec.to_builtins(await StatusReader(runtime, "1").read())

    bare, full = told["devices"]
    readings = ("memory_total_bytes", "memory_used_bytes", "utilization_ratio")
    readings += ("temperature_celsius", "power_milliwatts")
    assert [bare[key] for key in readings] == [None] * 5
    assert [full[key] for key in readings] == [8 * GIB, 2 * GIB, 0.0, 61, 350_000]
    assert (full["pool_ids"], full["health"], bare["health"]) == (["p", "q"], "ok", "")
    assert [device[key] for device in lost["devices"] for key in readings] == [None] * 10
    assert {pool["state"] for pool in lost["pools"]} == {"disconnected"}


async def test_no_prompt_output_label_or_engine_text_leaves(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Everything that could hold a client's words is searched for in every document."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    host = orchestrator.host()
    await host.register(snapshot())
    labels, prompt = {CANARY: CANARY}, job_pb2.JobInput(text=f"{CANARY} prompt")
    sampling = job_pb2.Sampling(stop=[CANARY], grammar=CANARY)
    given = {"labels": labels, "input": prompt, "sampling": sampling, "request_id": CANARY}
    failed = await enqueue(orchestrator, **given)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, CANARY)
    error = dispatch_pb2.AttemptError(
        kind=dispatch_pb2.ATTEMPT_ERROR_KIND_ENGINE_ERROR, message=f"cannot parse {CANARY}"
    )
    await host.frame(ended=[dispatch_pb2.AttemptEnded(handle=start.handle, error=error)])
    await all_events(orchestrator, failed.job_id)

    told = await now(orchestrator)
    documents = [json.dumps(told)]
    paths = ("/", f"/status/job.json?id={failed.job_id}")
    documents += [(await get(base(orchestrator) + path))[1] for path in paths]

    (over,) = told["ended"]
    assert (over["state"], over["why"]) == ("failed", "ENGINE_ERROR")
    assert failed.job_id in documents[2]
    assert not [document for document in documents if CANARY in document]


async def test_a_decision_is_explained_and_a_waiting_job_too(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Winner, candidates, exclusions with both sides; and what a job waits for."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    host = orchestrator.host()
    await host.register(
        snapshot("fast", slots_total=1, slots_free=1, perf_tokens_per_s=100.0),
        snapshot("slow", slots_total=1, slots_free=1, perf_tokens_per_s=20.0),
        snapshot("other", model_id="else"),
    )
    placed = await enqueue(orchestrator)
    await enqueue(orchestrator)
    waits = await enqueue(orchestrator)

    _, text, _ = await get(f"{base(orchestrator)}/status/job.json?id={placed.job_id}")
    _, waiting, _ = await get(f"{base(orchestrator)}/status/job.json?id={waits.job_id}")

    (decision,) = json.loads(text)["decisions"]
    assert (decision["pool_id"], decision["decided_by"]) == ("fast", "score")
    assert [c["pool_id"] for c in decision["candidates"]] == ["fast", "slow"]
    for one in decision["candidates"]:
        assert one["delay_ms"] + one["prompt_ms"] + one["decode_ms"] == one["score_ms"]
    assert decision["excluded"][0]["pool_ids"] == ["other"]
    assert decision["excluded"][0]["lacks"][0] == {
        "reason": "model",
        "required": "tiny",
        "offered": "else",
    }
    told = json.loads(waiting)
    assert (told["state"], told["decisions"]) == ("queued", [])
    assert told["wait_summary"].startswith(
        "A slot is free, but waiting for a faster pool should end it sooner. It is number 2 in line"
    )
    declined, *others = told["wait_causes"]
    assert declined["sentence"].startswith("1 pool slower than one worth waiting for: slow (an end")
    assert declined["remedy"].endswith("it takes what is free")
    assert [one["sentence"] for one in others] == [
        "1 pool without a free slot: fast",
        "1 pool with another model: other (else)",
    ]


async def test_a_journal_that_is_silent_is_told(start_orchestrator: StartOrchestrator) -> None:
    """The fleet is shown all the same, but no outcome that may not last."""
    store = FailingStore()
    orchestrator = await start_orchestrator(store, metrics_listen="127.0.0.1:0")
    host = orchestrator.host()
    await host.register(snapshot())
    done = await enqueue(orchestrator)
    start = await host.start()
    store.broken = True
    await host.started(start.handle)
    await host.finish(start.handle)
    runtime = orchestrator.server.runtime
    async with asyncio.timeout(WAIT_S):
        while runtime.core.jobs[done.job_id].live:
            await runtime.next_step()

    told = await now(orchestrator)

    assert "journal" in told["server"]["trouble"]
    assert told["ended"] == []
    assert [pool["pool_id"] for pool in told["pools"]] == ["pool-a"]
    store.broken = False


async def test_a_pool_that_takes_nothing_is_not_counted_as_ready(
    start_orchestrator: StartOrchestrator,
) -> None:
    """By an operator's drain, at once: page, ListPools and metrics agree, and no slot is free."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    await orchestrator.host().register(snapshot("p"), snapshot("q"))
    await orchestrator.pools.DrainPool(pool_admin_service_pb2.DrainPoolRequest(pool_id="p"))

    told = await now(orchestrator)
    _, scraped, _ = await get(f"{base(orchestrator)}/metrics")
    listed = await orchestrator.pools.ListPools(pool_admin_service_pb2.ListPoolsRequest())

    assert [pool["state"] for pool in told["pools"]] == ["draining", "ready"]
    assert (told["pools_ready"], told["slots_total"], told["slots_free"]) == (1, 2, 2)
    assert [pool.state for pool in listed.pools] == ["DRAINING", "READY"]
    assert 'pool_state{pool_id="p",state="draining"} 1.0' in scraped
    assert 'pool_state{pool_id="p",state="ready"} 0.0' in scraped


async def test_of_a_large_fleet_the_troubled_are_shown(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Those that need somebody's eyes come first, so that they fit; all are counted."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    host = orchestrator.host()
    well = [snapshot(f"p{number:03d}") for number in range(POOLS_SHOWN + 5)]
    unready = snapshot("z", state=snapshot_pb2.POOL_STATE_UNREADY)
    await host.register(*well, unready)

    told = await now(orchestrator)

    ids = [pool["pool_id"] for pool in told["pools"]]
    assert ids == ["z"] + [f"p{number:03d}" for number in range(POOLS_SHOWN - 1)]
    assert (told["pools_total"], told["pools_ready"]) == (POOLS_SHOWN + 6, POOLS_SHOWN + 5)
    assert told["slots_free"] == told["slots_total"] == 2 * (POOLS_SHOWN + 5)


async def test_one_switch_turns_it_off(start_orchestrator: StartOrchestrator) -> None:
    """The metrics stay."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0", status_page=False)

    statuses = [
        (await get(base(orchestrator) + path))[0]
        for path in ("/", "/status/now.json", "/status/status.js", "/metrics")
    ]

    assert statuses == [404, 404, 404, 200]
