"""Jobs, pools and decisions as clients and operators see them. LO-207."""

import enum
from dataclasses import replace

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from llamaorch.orchestrator.v1 import (
    decision_pb2,
    job_pb2,
    orchestrator_service_pb2,
    pool_admin_service_pb2,
)
from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from orchestrator_core.core.decision import (
    Candidate,
    Decision,
    Exclusion,
    ExclusionReason,
    Shortfall,
)
from orchestrator_core.core.effects import Receipt
from orchestrator_core.core.explain import Explained
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.outcome import Finish, Outcome, Reason, Refusal, Usage
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, StartMode
from orchestrator_core.core.states import JobState
from orchestrator_core.wire import enums
from orchestrator_core.wire.decisions import decision_to_proto
from orchestrator_core.wire.errors import to_status
from orchestrator_core.wire.jobs import parse_spec
from orchestrator_core.wire.pools import PoolView, pool_to_proto
from orchestrator_core.wire.snapshots import parse_snapshot
from orchestrator_core.wire.views import JobView, job_to_proto, receipt_to_proto
from tests.unit.orchestrator_core.wire.full_snapshot import full_snapshot
from tests.unit.orchestrator_core.wire.specs import CONTEXT, full_spec

CANDIDATE = Candidate("pool", "pool@1", 900, 100, 800, True, 2, -5, 20.0, 7, 30, prompt_ms=60)
DECISION = Decision(
    job_id="job-1",
    attempt=1,
    decided_ms=1_700_000_000_123,
    pool_id="pool",
    decided_by="score",
    candidates=(CANDIDATE,),
    candidates_total=9,
    exclusions=(Exclusion("other", (Shortfall(ExclusionReason.COMPUTE_CAP, "8.6", "unknown"),)),),
    exclusions_total=4,
    waited_ms=12,
)


def job(state: JobState = JobState.QUEUED) -> Job:
    """A full job accepted at 1.5 s."""
    spec = parse_spec(full_spec(), CONTEXT)
    assert isinstance(spec, JobSpec)
    return Job(spec, 1, 1_500, state=state)


def pool_of(reported: snapshot_pb2.PoolSnapshot) -> Pool:
    """The pool of a snapshot that was true at 1 s."""
    snapshot = parse_snapshot(reported)
    assert isinstance(snapshot, PoolSnapshot)
    pool = Pool(snapshot, as_of_ms=1_000)
    pool.apply(snapshot, 1_000)
    return pool


def test_a_waiting_job_tells_its_place_and_forecast() -> None:
    """Prompt and output are not part of it, labels are."""
    message = job_to_proto(JobView(job(), 2_000, 3, 40, 90, 0.75, "ab" * 16))

    assert message == job_pb2.Job(
        job_id="job-1",
        state=job_pb2.JOB_STATE_QUEUED,
        priority=job_pb2.PRIORITY_BATCH,
        engine="llama.cpp",
        model_id="model",
        session_id="session-1",
        accepted_at={"seconds": 1, "nanos": 500_000_000},
        queue_position=3,
        predicted_start_ms=40,
        predicted_end_ms=90,
        on_time_probability=0.75,
        usage=job_pb2.Usage(),
        trace_id="ab" * 16,
        labels=full_spec().labels,
    )


def test_a_running_job_tells_where_and_since_when() -> None:
    """A prediction that lies in the past reads as now."""
    running = job(JobState.RUNNING)
    running.attempts_made, running.started_ms = 2, 2_000
    running.attempt = Attempt("job-1", 2, "pool", "pool@1", "host", 1_900)

    message = job_to_proto(JobView(running, 3_000, predicted_start_ms=7, predicted_end_ms=-4))

    assert (message.attempt, message.pool_id, message.replica_id) == (2, "pool", "pool@1")
    assert message.started_at.ToMilliseconds() == 2_000
    assert not message.HasField("predicted_start_ms")
    assert not message.HasField("queue_position")
    assert message.predicted_end_ms == 0


def test_an_ended_job_remembers_its_pool_and_outcome() -> None:
    """The last attempt's place outlives the attempt."""
    ended = job(JobState.FINISHED)
    ended.ended_ms, ended.outcome = 4_000, Outcome(Finish.EOS)
    ended.decisions.append(DECISION)
    ended.usage = Usage(tokens_out=0)

    message = job_to_proto(JobView(ended, 5_000, predicted_end_ms=1))

    assert (message.pool_id, message.replica_id) == ("pool", "pool@1")
    assert message.finish_reason == job_pb2.FINISH_REASON_EOS
    assert message.ended_at.ToMilliseconds() == 4_000
    assert message.usage.HasField("tokens_out")
    assert not message.HasField("predicted_end_ms")
    assert not message.HasField("error")


@pytest.mark.parametrize(
    ("state", "outcome", "finish"),
    [
        (JobState.CANCELLED, Outcome(), job_pb2.FINISH_REASON_CANCELLED),
        (JobState.FAILED, Outcome(error=Refusal(Reason.WORKER_RESET, "gone")), 0),
    ],
)
def test_an_outcome_is_a_finish_or_an_error(state: JobState, outcome: Outcome, finish: int) -> None:
    """CANCELLED has a finish reason, FAILED an error, never both."""
    ended = job(state)
    ended.outcome = outcome

    message = job_to_proto(JobView(ended, 5_000))

    assert message.finish_reason == finish
    assert message.HasField("error") is (outcome.error is not None)
    if outcome.error is not None:
        assert message.error == to_status(outcome.error)


def test_a_receipt_carries_the_seed() -> None:
    """What is not known stays absent."""
    receipt = Receipt("job-1", 2, 0, None, None, 15, duplicate=True, seed=5)

    assert receipt_to_proto(receipt) == (
        orchestrator_service_pb2.EnqueueResponse(
            job_id="job-1",
            queue_position=2,
            predicted_start_ms=0,
            backoff_ms=15,
            seed=5,
            duplicate=True,
        )
    )


def test_a_decision_is_told_whole() -> None:
    """Winner, candidates, exclusions and their totals; memory is never negative."""
    assert decision_to_proto(DECISION) == decision_pb2.Decision(
        rules_version=3,
        job_id="job-1",
        attempt=1,
        decided_at={"seconds": 1_700_000_000, "nanos": 123_000_000},
        pool_id="pool",
        decided_by="score",
        candidates=[
            decision_pb2.Candidate(
                pool_id="pool",
                replica_id="pool@1",
                predicted_end_ms=900,
                first_token_ms=100,
                decode_ms=800,
                kv_warm=True,
                slots_free=2,
                vram_headroom_bytes=0,
                snapshot_version=7,
                snapshot_age_ms=30,
                tokens_per_s=20.0,
                prompt_ms=60,
            )
        ],
        candidates_total=9,
        exclusions=[
            decision_pb2.Exclusion(
                pool_id="other",
                shortfalls=[
                    decision_pb2.Shortfall(
                        reason=decision_pb2.EXCLUSION_REASON_COMPUTE_CAP,
                        required="8.6",
                        offered="unknown",
                    )
                ],
            )
        ],
        exclusions_total=4,
        waited_ms=12,
    )


def test_a_decision_in_full_shows_what_its_pools_had_reported() -> None:
    """The snapshot beside each candidate; what was not reported is absent, never 0. LO-207."""
    reported = PoolSnapshot(
        "pool", "pool@1", "h", 7, "m", "e", slots_total=4, slots_free=3, vram_free_bytes=9
    )
    full = replace(DECISION, candidates_total=1, exclusions_total=1, waited_ms=13)

    told = decision_to_proto(DECISION, Explained(full, (reported,)))

    assert told.complete
    assert told.waited_ms == 13
    facts = told.candidates[0].snapshot
    assert facts == decision_pb2.SnapshotFacts(slots_total=4, slots_free=3, vram_free_bytes=9)
    assert not facts.HasField("perf_tokens_per_s")
    assert not decision_to_proto(DECISION).complete
    assert not decision_to_proto(DECISION).candidates[0].HasField("snapshot")


def test_a_pool_shows_our_own_account_and_the_reported_devices() -> None:
    """Free slots are counted here; what a device does not report stays absent."""
    reported = full_snapshot()
    pool = pool_of(reported)
    pool.own[("mine", 1)] = Attempt("mine", 1, "pool", "pool@1", "host", 1_000)

    shown = pool_to_proto(PoolView(pool, 1_250, reported, tokens_per_s=42.0))

    assert shown == pool_admin_service_pb2.Pool(
        pool_id="pool",
        replica_id="pool@1",
        host_id="host",
        connected=True,
        state="DRAINING",
        state_reason="operator: as you wish",
        engine="llama.cpp",
        engine_version="b1",
        model_id="model",
        model_digest="sha256:aa",
        slots_total=4,
        slots_free=1,
        ctx_max=8192,
        snapshot_age_ms=250,
        snapshot_version=7,
        devices=[
            pool_admin_service_pb2.PoolDevice(
                device_id="GPU-a", memory_total_bytes=24, utilization_ratio=0.5
            ),
            pool_admin_service_pb2.PoolDevice(device_id="GPU-b"),
        ],
        tokens_per_s=42.0,
        perf_scale=reported.perf_scale,
    )


def test_a_pool_without_a_report_has_no_devices() -> None:
    """After a restart nothing is invented."""
    pool = pool_of(full_snapshot())

    shown = pool_to_proto(PoolView(pool, 900))

    assert not shown.devices
    assert shown.snapshot_age_ms == 0
    assert not shown.HasField("tokens_per_s")


def test_what_was_wrong_with_a_pool_is_not_told_once_its_host_is_gone() -> None:
    """The reason is then another one."""
    reported = full_snapshot()
    reported.state = snapshot_pb2.POOL_STATE_UNREADY
    reported.state_reason = snapshot_pb2.POOL_STATE_REASON_RESTART_STORM
    reported.state_detail = "the model is not there"
    pool = pool_of(reported)

    before = pool_to_proto(PoolView(pool, 900, reported))
    pool.connected = False
    after = pool_to_proto(PoolView(pool, 900, reported))

    assert (before.state, "the model is not there" in before.state_reason) == ("UNREADY", True)
    assert (after.state, after.state_reason) == (
        "DISCONNECTED",
        "its host is not connected; it was UNREADY when last heard of",
    )


def test_an_operator_sees_what_is_wrong_with_a_device() -> None:
    """Health and sentence as the host told them, lowered clocks, and nothing of what is newer."""
    reported = full_snapshot()
    reported.perf_scale = 0.5
    first, second = reported.devices
    first.health = snapshot_pb2.DEVICE_HEALTH_LOST
    first.health_detail = "GPU 0 fell off the bus"
    # A value of a later version.
    second.health = 99  # type: ignore[assignment]

    shown = pool_to_proto(PoolView(pool_of(reported), 900, reported))

    assert [device.health for device in shown.devices] == ["LOST", ""]
    assert shown.devices[0].health_detail == "GPU 0 fell off the bus"
    assert shown.perf_scale == 0.5


@pytest.mark.parametrize(
    ("core", "wire", "prefix", "table"),
    [
        (JobState, job_pb2.JobState, "JOB_STATE_", enums.JOB_STATE_TO_WIRE),
        (Finish, job_pb2.FinishReason, "FINISH_REASON_", enums.FINISH_TO_WIRE),
        (
            ExclusionReason,
            decision_pb2.ExclusionReason,
            "EXCLUSION_REASON_",
            enums.EXCLUSION_TO_WIRE,
        ),
    ],
)
def test_enums_of_core_and_wire_are_the_same_by_name(
    core: type[enum.Enum], wire: EnumTypeWrapper, prefix: str, table: dict[enum.Enum, int]
) -> None:
    """A value that is added on one side must be added on the other."""
    assert {f"{prefix}{member.name}": table[member] for member in core} == {
        name: number for name, number in wire.items() if number != 0
    }


def test_every_mode_but_a_fresh_start_can_be_announced() -> None:
    """A new start mode needs a resume mode."""
    assert set(enums.RESUME_MODE_TO_WIRE) == set(StartMode) - {StartMode.FRESH}


def test_every_refusal_reason_has_a_name() -> None:
    """Reasons of hosts become short words for logs and metrics."""
    names = [enums.refusal_reason_from_wire(v) for v in dispatch_pb2.RefusalReason.values()]

    assert names == [
        "unknown",
        "no_slot",
        "unknown_replica",
        "not_ready",
        "store_full",
        "unsupported",
    ]
    assert enums.state_reason_from_wire(snapshot_pb2.POOL_STATE_REASON_RESTART_STORM) == (
        "restart_storm"
    )
