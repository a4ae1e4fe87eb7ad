"""The `llorch` command: what `explain` says of decisions, against a scripted server."""

from google.protobuf.timestamp_pb2 import Timestamp

from llamaorch.orchestrator.v1 import decision_pb2, job_pb2, orchestrator_service_pb2
from orchestrator_core.core import placement
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.llorch import cells, llorch, table_of, within
from tests.integration.clients.scripted_server import ScriptedServer

DECISION = decision_pb2.Decision(
    rules_version=1,
    job_id="job-1",
    attempt=1,
    decided_at=Timestamp(seconds=1),
    pool_id="gpu-a",
    decided_by="warm_kv",
    candidates=[
        decision_pb2.Candidate(
            pool_id="gpu-a",
            predicted_end_ms=900,
            first_token_ms=100,
            decode_ms=800,
            prompt_ms=60,
            kv_warm=True,
            slots_free=2,
            vram_headroom_bytes=3 * 2**30,
            snapshot_age_ms=40,
            snapshot_version=12,
            snapshot=decision_pb2.SnapshotFacts(
                slots_total=4, slots_free=3, vram_free_bytes=2**32, perf_tokens_per_s=41.5
            ),
        ),
        decision_pb2.Candidate(
            pool_id="gpu-b", predicted_end_ms=900, slots_free=1, perf_scale=0.65
        ),
    ],
    candidates_total=2,
    exclusions=[
        decision_pb2.Exclusion(
            pool_id="gpu-c",
            shortfalls=[
                decision_pb2.Shortfall(
                    reason=decision_pb2.EXCLUSION_REASON_COMPUTE_CAP, required="8.6", offered="7.5"
                ),
                decision_pb2.Shortfall(reason=decision_pb2.EXCLUSION_REASON_NO_SLOT),
            ],
        )
    ],
    exclusions_total=1,
    waited_ms=1500,
    complete=True,
)


async def test_explain_shows_candidates_exclusions_and_what_decided(server: ScriptedServer) -> None:
    """LO-207: scores, shortfalls, the deciding rule and the trace stand in one answer."""
    server.on(
        "ExplainJob",
        orchestrator_service_pb2.ExplainJobResponse(
            job=wire.job(), decisions=[DECISION], trace_id="ab" * 16
        ),
    )

    outcome = await llorch(server.address, "explain", "job-1")

    assert (outcome.code, outcome.stderr) == (0, "")
    assert (
        "attempt 1: gpu-a after waiting 1.5 s, decided by warm_kv (rules version 1)"
        in outcome.stdout
    )
    assert f"trace: {'ab' * 16}" in outcome.stdout
    rows = table_of(outcome.stdout)
    assert cells("* gpu-a 900 ms 100 ms 60 ms 800 ms warm 2/4 3.0 GiB 41.5 100%") in rows
    assert cells("gpu-b 900 ms 0 ms - 0 ms cold 1 - - 65%") in rows
    assert "columns left out: VERSION, AGE, VRAM FREE (--json has them)" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 100
    assert "no longer holds" not in outcome.stdout
    assert ["gpu-c", "COMPUTE_CAP", "8.6", "7.5"] in rows
    assert ["NO_SLOT", "-", "-"] in rows


async def test_explain_says_when_only_the_best_of_a_decision_is_known(
    server: ScriptedServer,
) -> None:
    """LO-207: a short list is not mistaken for the whole."""
    short = decision_pb2.Decision()
    short.CopyFrom(DECISION)
    short.complete, short.candidates_total = False, 40
    response = orchestrator_service_pb2.ExplainJobResponse(job=wire.job(), decisions=[short])
    server.on("ExplainJob", response)

    outcome = await llorch(server.address, "explain", "job-1")

    assert "candidates (2 of 40)" in outcome.stdout
    assert "the recording no longer holds this decision" in outcome.stdout


async def test_explain_of_a_waiting_job_says_what_it_waits_for(server: ScriptedServer) -> None:
    """LO-207: no decision yet, and a reason per pool."""
    waiting = decision_pb2.Exclusion(
        pool_id="gpu-a",
        shortfalls=[
            decision_pb2.Shortfall(
                reason=decision_pb2.EXCLUSION_REASON_KV_ROOM, required="10", offered="4"
            )
        ],
    )
    response = orchestrator_service_pb2.ExplainJobResponse(
        job=wire.job(state=job_pb2.JOB_STATE_QUEUED), waiting_for=[waiting]
    )
    server.on("ExplainJob", response)

    outcome = await llorch(server.address, "explain", "job-1")
    response.waiting_for_total = 900
    many = await within(server.address, "explain", "job-1")

    assert "waits because (1 of 900)" in many.stdout
    assert "waits because (1 of 1)" in outcome.stdout
    assert ["gpu-a", "KV_ROOM", "10", "4"] in table_of(outcome.stdout)


async def test_explain_of_a_job_behind_a_drain_names_the_command(server: ScriptedServer) -> None:
    """OC-CTRL-2002: who reads why a job waits can end it."""
    waiting = [
        decision_pb2.Exclusion(
            pool_id=pool_id,
            shortfalls=[
                decision_pb2.Shortfall(
                    reason=decision_pb2.EXCLUSION_REASON_NOT_READY,
                    required="ready",
                    offered=offered,
                )
            ],
        )
        for pool_id, offered in (("gpu-a", placement.DRAINING), ("gpu-b", "unready"))
    ]
    response = orchestrator_service_pb2.ExplainJobResponse(
        job=wire.job(state=job_pb2.JOB_STATE_QUEUED), waiting_for=waiting
    )
    server.on("ExplainJob", response)

    outcome = await llorch(server.address, "explain", "job-1")

    assert "`llorch undrain gpu-a` lets it take work again" in outcome.stdout
    assert "undrain gpu-b" not in outcome.stdout


async def test_explain_as_json_has_stable_keys(server: ScriptedServer) -> None:
    """LO-207: another program reads decisions without parsing a table."""
    server.on(
        "ExplainJob",
        orchestrator_service_pb2.ExplainJobResponse(job=wire.job(), decisions=[DECISION]),
    )

    outcome = await llorch(server.address, "explain", "job-1", "--json")

    (record,) = outcome.records()
    assert record["decisions"][0]["decided_by"] == "warm_kv"
    assert record["decisions"][0]["decided_at"] == "1970-01-01T00:00:01Z"
    assert record["decisions"][0]["exclusions"][0]["shortfalls"][0]["reason"] == "COMPUTE_CAP"
