"""The answer of ExplainJob, cut to what the page can draw. LO-207."""

from collections.abc import Sequence

from llamaorch.orchestrator.v1 import decision_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.status.jobs import priority, state
from orchestrator_core.status.model import (
    Candidate,
    Decision,
    Excluded,
    Explanation,
    Lack,
    WaitCause,
)

# Candidates of a decision, and groups of excluded pools.
POOLS_SHOWN = 32
# Of a group of excluded pools.
POOLS_NAMED = 3
DECISIONS_SHOWN = 4


def explanation(answer: pb.ExplainJobResponse) -> Explanation:
    """What the page shows of it: the latest decisions and the best of their pools."""
    job = answer.job
    latest = list(answer.decisions)[-DECISIONS_SHOWN:]
    return Explanation(
        job_id=job.job_id,
        state=state(job),
        priority=priority(job),
        model_id=job.model_id,
        decisions=tuple(_decision(decision) for decision in reversed(latest)),
        wait_summary=answer.wait_summary,
        wait_remedy=answer.wait_remedy,
        wait_causes=tuple(WaitCause(one.sentence, one.remedy) for one in answer.wait_causes),
        trace_id=answer.trace_id,
    )


def _decision(told: decision_pb2.Decision) -> Decision:
    return Decision(
        attempt=told.attempt,
        decided_at_ms=told.decided_at.ToMilliseconds(),
        pool_id=told.pool_id,
        decided_by=told.decided_by,
        waited_ms=told.waited_ms,
        declined_offers=told.declined_offers,
        candidates=tuple(_candidate(one) for one in told.candidates[:POOLS_SHOWN]),
        candidates_total=told.candidates_total,
        excluded=_excluded(told.exclusions),
        excluded_total=told.exclusions_total,
        complete=told.complete,
    )


def _candidate(told: decision_pb2.Candidate) -> Candidate:
    headroom = told.vram_headroom_bytes if told.HasField("vram_headroom_bytes") else None
    return Candidate(
        pool_id=told.pool_id,
        score_ms=told.predicted_end_ms,
        delay_ms=told.first_token_ms - told.prompt_ms,
        prompt_ms=told.prompt_ms,
        decode_ms=told.decode_ms,
        kv_warm=told.kv_warm,
        slots_free=told.slots_free,
        headroom_bytes=headroom,
        tokens_per_s=told.tokens_per_s,
        perf_scale=told.perf_scale if told.HasField("perf_scale") else 1.0,
        snapshot_age_ms=told.snapshot_age_ms,
        snapshot_version=told.snapshot_version,
    )


def _excluded(told: Sequence[decision_pb2.Exclusion]) -> tuple[Excluded, ...]:
    """Pools that lack the same together, those that have the most in common first."""
    groups: dict[tuple[Lack, ...], list[str]] = {}
    for exclusion in told:
        lacks = tuple(
            Lack(_reason(each), each.required, each.offered) for each in exclusion.shortfalls
        )
        groups.setdefault(lacks, []).append(exclusion.pool_id)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return tuple(
        Excluded(tuple(pool_ids[:POOLS_NAMED]), len(pool_ids), lacks)
        for lacks, pool_ids in ordered[:POOLS_SHOWN]
    )


def _reason(shortfall: decision_pb2.Shortfall) -> str:
    name = decision_pb2.ExclusionReason.Name(shortfall.reason)
    return name.removeprefix("EXCLUSION_REASON_").lower()
