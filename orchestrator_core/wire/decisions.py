"""Placement decisions as clients see them. LO-207."""

from llamaorch.orchestrator.v1 import decision_pb2
from orchestrator_core.core.decision import Candidate, Decision, Exclusion
from orchestrator_core.core.explain import Explained
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.wire.enums import EXCLUSION_TO_WIRE
from orchestrator_core.wire.views import timestamp


def exclusion_to_proto(exclusion: Exclusion) -> decision_pb2.Exclusion:
    """A pool that could not take the job, with every shortfall."""
    return decision_pb2.Exclusion(
        pool_id=exclusion.pool_id,
        shortfalls=[
            decision_pb2.Shortfall(
                reason=EXCLUSION_TO_WIRE[shortfall.reason],
                required=shortfall.required,
                offered=shortfall.offered,
            )
            for shortfall in exclusion.shortfalls
        ],
    )


def candidate_to_proto(
    candidate: Candidate, snapshot: PoolSnapshot | None = None
) -> decision_pb2.Candidate:
    """A pool that could take the job. The wire has no negative headroom: 0 then."""
    headroom_bytes = candidate.vram_headroom_bytes
    return decision_pb2.Candidate(
        pool_id=candidate.pool_id,
        replica_id=candidate.replica_id,
        predicted_end_ms=candidate.predicted_end_ms,
        first_token_ms=candidate.first_token_ms,
        decode_ms=candidate.decode_ms,
        kv_warm=candidate.kv_warm,
        slots_free=candidate.slots_free,
        vram_headroom_bytes=None if headroom_bytes is None else max(0, headroom_bytes),
        snapshot_version=candidate.snapshot_version,
        snapshot_age_ms=max(0, candidate.snapshot_age_ms),
        snapshot=None if snapshot is None else _facts(snapshot),
        tokens_per_s=candidate.tokens_per_s,
        # Absent where nothing is lowered, as in the snapshot.
        perf_scale=None if candidate.perf_scale == 1.0 else candidate.perf_scale,
        prompt_ms=candidate.prompt_ms,
    )


def decision_to_proto(decision: Decision, full: Explained | None = None) -> decision_pb2.Decision:
    """The record of one placement; `full` is the same decision, made again without limits."""
    told = full.decision if full else decision
    candidates = told.candidates
    snapshots = full.snapshots if full else (None,) * len(candidates)
    return _decision(told, list(map(candidate_to_proto, candidates, snapshots)))


def decision_in_short(decision: Decision) -> decision_pb2.Decision:
    """A placement without its candidates and exclusions, of which only the numbers are told."""
    short = _decision(decision, [])
    del short.exclusions[:]
    return short


def _decision(
    decision: Decision, candidates: list[decision_pb2.Candidate]
) -> decision_pb2.Decision:
    return decision_pb2.Decision(
        rules_version=decision.rules_version,
        job_id=decision.job_id,
        attempt=decision.attempt,
        decided_at=timestamp(decision.decided_ms),
        pool_id=decision.pool_id,
        decided_by=decision.decided_by,
        candidates=candidates,
        candidates_total=decision.candidates_total,
        exclusions=[exclusion_to_proto(exclusion) for exclusion in decision.exclusions],
        exclusions_total=decision.exclusions_total,
        waited_ms=max(0, decision.waited_ms),
        declined_offers=decision.declined_offers,
        complete=len(decision.candidates) == decision.candidates_total
        and len(decision.exclusions) == decision.exclusions_total,
    )


def _facts(snapshot: PoolSnapshot) -> decision_pb2.SnapshotFacts:
    return decision_pb2.SnapshotFacts(
        slots_total=snapshot.slots_total,
        slots_free=snapshot.slots_free,
        vram_total_bytes=snapshot.vram_total_bytes,
        vram_free_bytes=snapshot.vram_free_bytes,
        kv_free_bytes=snapshot.kv_free_bytes,
        perf_tokens_per_s=snapshot.perf_tokens_per_s,
        first_token_ms=snapshot.first_token_ms,
        prefill_tokens_per_s=snapshot.prefill_tokens_per_s,
    )
