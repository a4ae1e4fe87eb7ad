"""A decision in full agrees with the one that was made, and changes nothing."""

import pytest

from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.explain import Explained
from orchestrator_core.core.machine import Core
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.recorder.codec import state_hash
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import snapshot
from tests.unit.orchestrator_core.core.worlds import played


def test_every_pool_is_either_a_candidate_or_excluded() -> None:
    """Thirty pools, of which a decision keeps five candidates and sixteen exclusions. LO-207."""
    told: list[Explained] = []
    bench = Bench(
        *(wide(f"good-{i:02d}", perf_tokens_per_s=10.0 + i) for i in range(12)),
        *(snapshot(f"other-{i:02d}", model_id="n") for i in range(20)),
    )
    bench.core.watch_placements(told.append)

    (record,) = only(bench.enqueue("a"), DispatchRecord)

    (explained,) = told
    full = explained.decision
    assert len(full.candidates) == full.candidates_total == 12
    assert len(full.exclusions) == full.exclusions_total == 20
    assert full.candidates[:5] == record.decision.candidates
    assert (full.pool_id, full.decided_by) == (record.pool_id, record.decision.decided_by)
    assert [s.pool_id for s in explained.snapshots] == [c.pool_id for c in full.candidates]
    assert explained.snapshots[0].perf_tokens_per_s == 21.0
    assert {e.shortfalls[0].reason for e in full.exclusions} == {ExclusionReason.MODEL}


@pytest.mark.parametrize("seed", range(1, 13))
def test_the_full_decision_is_the_one_that_was_made(seed: int) -> None:
    """Winner, score and the best five, in random worlds; being watched changes no answer."""
    world = played(seed, steps=0)
    told: list[Explained] = []
    world.core.watch_placements(told.append)
    world.run(400)
    twin = Core(world.config)
    answers = [twin.step(event, now_ms) for event, now_ms in world.inputs]

    made = [e.decision for effects in world.outputs for e in only(effects, DispatchRecord)]

    assert repr(answers) == repr(world.outputs)
    assert len(made) == len(told) > 10
    for decision, explained in zip(made, told, strict=True):
        full = explained.decision
        assert full.candidates[:5] == decision.candidates
        assert full.candidates_total == decision.candidates_total
        assert (full.job_id, full.attempt) == (decision.job_id, decision.attempt)
        assert (full.pool_id, full.decided_by) == (decision.pool_id, decision.decided_by)
        assert full.exclusions_total == decision.exclusions_total


@pytest.mark.parametrize("seed", range(1, 13))
def test_questions_do_not_change_the_state(seed: int) -> None:
    """A read that changed what is decided later would make every recording differ. LO-207."""
    world = played(seed)
    core = world.core
    before = state_hash(core.freeze())

    for job in list(core.jobs.values()):
        core.position(job)
        core.waiting_for(job, world.now_ms)
        if core.position(job) is not None:
            core.forecast(job)
        if job.live:
            core.on_time_probability(job, world.now_ms)
    for pool in core.pools.values():
        core.tokens_per_s(pool)

    assert state_hash(core.freeze()) == before
