"""The `llorch` command: jobs, pools, status, capabilities and cancel against a scripted server."""

import grpc
import pytest
from grpc_health.v1 import health_pb2

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2, pool_admin_service_pb2
from llamaorch_client import AsyncClient
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.llorch import cells, llorch, table_of
from tests.integration.clients.scripted_server import Failure, ScriptedServer

POOL = pool_admin_service_pb2.Pool(
    pool_id="gpu-a",
    host_id="desk",
    connected=True,
    state="READY",
    engine="llama.cpp",
    engine_version="b1",
    model_id="tiny",
    slots_total=4,
    slots_free=3,
    ctx_max=8192,
    snapshot_age_ms=250,
    devices=[
        pool_admin_service_pb2.PoolDevice(
            device_id="GPU-1", name="RTX 3090", memory_total_bytes=24 * 2**30
        )
    ],
    tokens_per_s=45.25,
)
CAPABILITIES = orchestrator_service_pb2.GetCapabilitiesResponse(
    api_version="1.0",
    server_version="0.1.0",
    queue_policy="reject",
    limits=orchestrator_service_pb2.Limits(queue_capacity=100),
    replica_sets=[orchestrator_service_pb2.ReplicaSet(model_id="tiny", pool_ids=["gpu-a"])],
    features=["exchange"],
)


async def test_jobs_lists_one_line_per_job(server: ScriptedServer) -> None:
    """Filters reach the server; what is not known is a dash."""
    server.on(
        "ListJobs",
        orchestrator_service_pb2.ListJobsResponse(
            jobs=[
                wire.job(
                    "job-2", job_pb2.JOB_STATE_QUEUED, queue_position=1, predicted_start_ms=2000
                ),
                wire.job("job-1", pool_id="gpu-a"),
            ]
        ),
    )

    outcome = await llorch(
        server.address, *cells("jobs --state queued --state running --session s1 --limit 5")
    )

    rows = table_of(outcome.stdout)
    assert cells("job-2 QUEUED INTERACTIVE tiny 1 2.0 s - - -") in rows
    assert cells("job-1 RUNNING INTERACTIVE tiny - - gpu-a - -") in rows
    request = server.made("ListJobs")[0].request
    assert list(request.states) == [job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING]
    assert (request.session_id, request.page_size) == ("s1", 5)


async def test_pools_shows_slots_and_devices(server: ScriptedServer) -> None:
    """What the hardware does not report is a dash, not a zero."""
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[POOL]))

    outcome = await llorch(server.address, "pools")

    expected = "gpu-a READY tiny llama.cpp b1 3/4 8192 45.2 desk 250 ms RTX 3090 -/24.0 GiB"
    assert cells(expected) in table_of(outcome.stdout)


async def test_a_long_reason_stands_below_the_table(server: ScriptedServer) -> None:
    """The other columns stay on the screen, and nothing of the sentence is lost."""
    halted = pool_admin_service_pb2.Pool()
    halted.CopyFrom(POOL)
    sentence = "the model file is gone and " * 20
    halted.state, halted.state_reason = "UNREADY", f"restart_storm,   {sentence}\n   ^^^^ end"
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[halted]))

    pools = await llorch(server.address, "pools")

    assert "UNREADY: restart_storm, the model file is gone and the …" in pools.stdout
    assert f"gpu-a: restart_storm, {sentence}^^^^ end" in pools.stdout
    assert "desk" in pools.stdout


async def test_an_unwell_device_and_lowered_clocks_are_where_an_operator_looks(
    server: ScriptedServer,
) -> None:
    """Health with its sentence, and at what share of full clocks the pool works."""
    hot = pool_admin_service_pb2.Pool()
    hot.CopyFrom(POOL)
    hot.perf_scale = 0.65
    hot.devices[0].health, hot.devices[0].health_detail = "LOST", "GPU 0 fell off the bus"
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[hot]))

    pools = await llorch(server.address, "pools")
    table = await llorch(server.address, "devices")
    record = (await llorch(server.address, "devices", "--json")).records()[0]["devices"][0]

    assert "45.2 (at 65%)" in pools.stdout
    assert "RTX 3090 -/24.0 GiB LOST" in pools.stdout
    assert "LOST: GPU 0 fell off the bus" in table.stdout
    assert "gpu-a READY (at 65%)" in table.stdout
    assert (record["health"], record["health_detail"]) == ("LOST", "GPU 0 fell off the bus")


async def test_devices_are_shown_once_into_a_pipe(server: ScriptedServer) -> None:
    """One row for each device with all its pools; what is not reported is a dash."""
    other = pool_admin_service_pb2.Pool()
    other.CopyFrom(POOL)
    other.pool_id, other.state = "gpu-b", "STARTING"
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[POOL, other]))

    table = await llorch(server.address, "devices")
    record = await llorch(server.address, "devices", "--json")

    expected = "desk RTX 3090 (GPU-1) 24.0 GiB - - - - - gpu-a READY; gpu-b STARTING"
    assert cells(expected) in table_of(table.stdout)
    assert (table.code, record.code) == (0, 0)
    devices = record.records()[0]["devices"]
    assert [device["device_id"] for device in devices] == ["GPU-1"]
    assert devices[0]["memory_used_bytes"] is None


async def test_a_pool_manager_that_does_not_answer_is_named(server: ScriptedServer) -> None:
    """`--host` asks it directly; its silence is a sentence and exit code 3."""
    outcome = await llorch(server.address, "devices", "--once", "--host", "127.0.0.1:9")

    assert outcome.code == 3
    assert outcome.stderr == "127.0.0.1:9 does not answer: is pool-managerd running there?\n"


async def test_an_orchestrator_in_the_place_of_a_pool_manager_is_told(
    server: ScriptedServer,
) -> None:
    """It answers, so that silence would be the wrong word."""
    outcome = await llorch(server.address, "devices", "--once", "--host", server.address)

    assert outcome.code == 2
    assert outcome.stderr == (
        f"llorch: {server.address} is no pool-managerd, it may be orchestratord: name the `listen` "
        "of the host, 7071 unless set\n"
    )


@pytest.mark.parametrize(("health", "code"), [("SERVING", 0), ("NOT_SERVING", 3)])
async def test_status_is_one_page_and_its_exit_code_tells_the_health(
    server: ScriptedServer, health: str, code: int
) -> None:
    """HME-050's command-line sibling: health, version, models, queue and pools."""
    server.serving = health_pb2.HealthCheckResponse.ServingStatus.Value(health)
    server.on("GetCapabilities", CAPABILITIES)
    other = pool_admin_service_pb2.Pool(pool_id="gpu-b", state="UNREADY")
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[POOL, other]))
    batch = wire.job("b", job_pb2.JOB_STATE_QUEUED, priority=job_pb2.PRIORITY_BATCH)
    waiting = wire.job("i", job_pb2.JOB_STATE_QUEUED)
    jobs = orchestrator_service_pb2.ListJobsResponse(jobs=[wire.job(), batch, waiting])
    server.on("ListJobs", jobs)

    outcome = await llorch(server.address, "status")

    assert outcome.code == code
    assert f"{server.address}: {health}, version 0.1.0" in outcome.stdout
    assert "2 of 100 waiting (1 interactive, 1 batch), 1 running" in outcome.stdout
    assert "pools    1 of 2 ready; not ready: gpu-b (UNREADY)" in outcome.stdout


async def test_capabilities_tell_what_runs_at_once_and_every_limit(server: ScriptedServer) -> None:
    """ORCH-3095, ORCH-3096: the same numbers on the page and in the object."""
    served = orchestrator_service_pb2.ReplicaSet(
        model_id="tiny",
        engine="mock",
        engine_version="1",
        pool_ids=["gpu-a", "gpu-b"],
        slots_total=6,
        slots_ready=4,
        ctx_min=2048,
        ctx_max=4096,
        extensions=["grammar"],
    )
    limits = orchestrator_service_pb2.Limits(queue_capacity=100, queued_jobs=7)
    answer = orchestrator_service_pb2.GetCapabilitiesResponse(
        api_version="1.0", limits=limits, replica_sets=[served], features=["resume"]
    )
    server.on("GetCapabilities", answer)

    page = await llorch(server.address, "capabilities")
    record = (await llorch(server.address, "capabilities", "--json")).records()[0]
    async with AsyncClient(server.address) as client:
        at_once = (await client.capabilities()).jobs_at_once("tiny")

    assert page.code == 0
    assert cells("tiny mock 1 4 6 2048-4096 gpu-a, gpu-b grammar no") in table_of(page.stdout)
    assert cells("queued_jobs 7") in table_of(page.stdout)
    assert set(record["capabilities"]["limits"]) == {
        field.name for field in orchestrator_service_pb2.Limits.DESCRIPTOR.fields
    }
    assert set(record["capabilities"]["replica_sets"][0]) == {
        field.name for field in orchestrator_service_pb2.ReplicaSet.DESCRIPTOR.fields
    }
    assert at_once == 4


async def test_status_as_json_is_one_object(server: ScriptedServer) -> None:
    """A monitoring script reads one object."""
    server.on("GetCapabilities", CAPABILITIES)
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[POOL]))
    server.on("ListJobs", orchestrator_service_pb2.ListJobsResponse())

    outcome = await llorch(server.address, "status", "--json")

    (record,) = outcome.records()
    assert sorted(record) == ["capabilities", "health", "pools", "queue", "server"]
    assert record["pools"][0]["devices"][0]["memory_used_bytes"] is None
    assert record["queue"]["capacity"] == 100


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (job_pb2.JOB_STATE_CANCELLED, "job job-1 is cancelled\n"),
        (job_pb2.JOB_STATE_FINISHED, "job job-1 had already ended: finished\n"),
    ],
)
async def test_cancel_tells_the_true_state(
    server: ScriptedServer, state: job_pb2.JobState.ValueType, told: str
) -> None:
    """ORCH-3026: a job that ended before the cancel is not called cancelled."""
    server.on("Cancel", orchestrator_service_pb2.CancelResponse(job=wire.job(state=state)))

    outcome = await llorch(server.address, "cancel", "job-1")

    assert (outcome.code, outcome.stdout) == (0, told)


async def test_a_server_without_pools_says_what_to_start(server: ScriptedServer) -> None:
    """POOL_UNAVAILABLE names the other half of the product."""
    server.on("Enqueue", wire.unavailable(5_000))

    outcome = await llorch(server.address, "run", "--model", "tiny", "Hi")

    assert outcome.code == 3
    assert "start pool-managerd" in outcome.stderr


async def test_missing_credentials_exit_with_2_and_name_the_variable(
    server: ScriptedServer,
) -> None:
    """AUTH-1001: the sentence says where the token goes; the token given is sent."""
    refused = Failure(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "no token")
    server.on("ListPools", refused)

    token = "a" + "b" * 31

    outcome = await llorch(server.address, "pools", LLORCH_TOKEN=token)

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "set LLORCH_TOKEN" in outcome.stderr
    assert token not in outcome.stderr
    assert server.made("ListPools")[0].metadata["authorization"] == f"Bearer {token}"


async def test_a_server_cannot_write_control_characters_to_the_terminal(
    server: ScriptedServer,
) -> None:
    """Names and messages from a server are data: escape sequences in them do nothing."""
    evil = pool_admin_service_pb2.Pool(pool_id="gpu\x1b[2J\x07-a", state="READY")
    server.on("ListPools", pool_admin_service_pb2.ListPoolsResponse(pools=[evil]))

    outcome = await llorch(server.address, "pools")

    assert "\x1b" not in outcome.stdout
    assert "gpu[2J-a" in outcome.stdout


async def test_pools_watch_writes_all_pools_after_each_change(server: ScriptedServer) -> None:
    """Changes are put together into whole lists; when the server goes, the code says so."""
    pb = pool_admin_service_pb2
    other = pb.Pool(pool_id="gpu-b", state="STARTING")
    server.on(
        "WatchPools",
        [
            [pb.WatchPoolsResponse(pools=[POOL], more=True), pb.WatchPoolsResponse(pools=[other])],
            [pb.WatchPoolsResponse(pools=[pb.Pool(pool_id="gpu-b", state="READY")])],
            [pb.WatchPoolsResponse(removed_pool_ids=["gpu-a"])],
            Failure(grpc.StatusCode.UNAVAILABLE, message="gone"),
        ],
    )

    outcome = await llorch(server.address, "--json", "pools", "--watch")

    told = [
        {pool["pool_id"]: pool["state"] for pool in record["pools"]}
        for record in outcome.records()
        if "pools" in record
    ]
    assert told == [
        {"gpu-a": "READY", "gpu-b": "STARTING"},
        {"gpu-a": "READY", "gpu-b": "READY"},
        {"gpu-b": "READY"},
    ]
    assert outcome.code == 3
