"""What the page is told of a decision. LO-207."""

from llamaorch.orchestrator.v1 import decision_pb2, job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.status.explaining import DECISIONS_SHOWN, POOLS_SHOWN, explanation
from orchestrator_core.status.model import WaitCause

JOB = job_pb2.Job(
    job_id="job-1",
    state=job_pb2.JOB_STATE_RUNNING,
    priority=job_pb2.PRIORITY_BATCH,
    model_id="m",
    labels={"label": "canary"},
)


def test_the_parts_of_a_score_add_up() -> None:
    """The engine's delay is what the first token takes beyond the prompt."""
    candidate = decision_pb2.Candidate(
        pool_id="p", predicted_end_ms=900, first_token_ms=100, prompt_ms=60, decode_ms=800
    )
    decision = decision_pb2.Decision(candidates=[candidate], candidates_total=1, complete=True)

    told = explanation(pb.ExplainJobResponse(job=JOB, decisions=[decision]))

    (shown,) = told.decisions[0].candidates
    assert (shown.delay_ms, shown.prompt_ms, shown.decode_ms) == (40, 60, 800)
    assert shown.delay_ms + shown.prompt_ms + shown.decode_ms == shown.score_ms == 900
    assert shown.headroom_bytes is None
    assert shown.perf_scale == 1.0
    assert (told.state, told.priority) == ("running", "batch")


def test_a_large_fleet_is_cut_to_what_fits_and_counted() -> None:
    """The best candidates, the latest decisions, and how many there were."""
    candidates = [decision_pb2.Candidate(pool_id=f"p{i}") for i in range(1_000)]
    lack = decision_pb2.Shortfall(
        reason=decision_pb2.EXCLUSION_REASON_NO_SLOT, required="1", offered="0"
    )
    small = [
        decision_pb2.Shortfall(
            reason=decision_pb2.EXCLUSION_REASON_CONTEXT, required="99", offered=str(i)
        )
        for i in range(98)
    ]
    exclusions = [
        decision_pb2.Exclusion(pool_id=f"x{i}", shortfalls=[small[i] if i < 98 else lack])
        for i in range(500)
    ]
    decisions = [
        decision_pb2.Decision(
            attempt=attempt,
            candidates=candidates,
            candidates_total=1_000,
            exclusions=exclusions,
            exclusions_total=500,
        )
        for attempt in range(1, 8)
    ]

    told = explanation(pb.ExplainJobResponse(job=JOB, decisions=decisions))

    assert [decision.attempt for decision in told.decisions] == [7, 6, 5, 4]
    assert len(told.decisions) == DECISIONS_SHOWN
    first = told.decisions[0]
    assert [c.pool_id for c in first.candidates] == [f"p{i}" for i in range(POOLS_SHOWN)]
    assert (first.candidates_total, first.excluded_total) == (1_000, 500)
    assert len(first.excluded) == POOLS_SHOWN
    most, *others = first.excluded
    assert (most.pool_ids, most.pools_total) == (("x98", "x99", "x100"), 402)
    assert most.lacks[0].reason == "no_slot"
    assert {each.pools_total for each in others} == {1}
    assert not first.complete


def test_why_a_job_waits_is_told_as_the_server_says_it() -> None:
    """The page draws sentences, with what would help."""
    cause = pb.WaitCause(sentence="2 pools without a free slot: a, b", remedy="another pool")

    told = explanation(
        pb.ExplainJobResponse(job=JOB, wait_summary="Busy.", wait_remedy="", wait_causes=[cause])
    )

    assert (told.wait_summary, told.wait_remedy) == ("Busy.", "")
    assert told.wait_causes == (WaitCause(cause.sentence, cause.remedy),)
