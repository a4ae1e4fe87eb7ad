"""Who is offered a slot, and in which order. ORCH-3008, LO-103, LO-208."""

import pytest

from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.events import AttemptErrorKind, CancelRequested, EnqueueRequested
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.scheduler import LOOK_AHEAD
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Priority
from tests.unit.orchestrator_core.core.bench import Bench, only, session_bench, wide
from tests.unit.orchestrator_core.core.build import snapshot, spec


def placed(effects: list) -> list[str]:
    """Jobs in the order in which they were placed."""
    return [record.job_id for record in only(effects, DispatchRecord)]


def test_interactive_goes_first_and_each_class_in_order_of_arrival() -> None:
    """Across lanes too, when one step has slots for all."""
    bench = Bench(snapshot(slots_free=0), snapshot("q", model_id="n", slots_free=0))
    bench.enqueue("b1", batch=True)
    bench.enqueue("i1", model="n")
    bench.enqueue("i2")
    bench.enqueue("b2", batch=True, model="n")
    bench.enqueue("i3")
    bench.enqueue("i4", model="n")

    effects = bench.register(wide("r"), wide("s", model_id="n", host_id="g"), host="g")

    assert placed(effects) == ["i1", "i2", "i3", "i4", "b1", "b2"]


def test_a_batch_jobs_memory_is_not_taken_by_interactive_for_ever() -> None:
    """LO-103: when its turn has come, its pool is kept for it until it fits."""
    bench = Bench(wide(kv_free_bytes=10), batch_every=2)
    bench.enqueue("i0", est_kv_bytes=4)
    bench.enqueue("b", batch=True, est_kv_bytes=8)
    bench.enqueue("i1", "i2", est_kv_bytes=2)

    assert placed(bench.enqueue("i3", est_kv_bytes=1)) == []
    assert placed(bench.end("i0")) == []
    assert placed(bench.end("i1")) == ["b"]
    assert placed(bench.end("i2")) == ["i3"]


def test_a_turn_that_batch_cannot_use_holds_nobody_up() -> None:
    """A waiting batch job without a pool does not keep interactive jobs from theirs."""
    bench = Bench(wide(slots=20), snapshot("q", model_id="n", slots_free=0), batch_every=1)
    bench.enqueue("b", batch=True, model="n")

    effects = bench.enqueue(*(f"i{n}" for n in range(10)))

    assert len(placed(effects)) == 10


def test_the_offer_passes_on_within_a_bound() -> None:
    """Design 5.2: jobs that failed on the open pool are passed by, `LOOK_AHEAD` of them."""
    failing = LOOK_AHEAD + 1
    bench = Bench(wide(slots=failing), snapshot("q", slots_free=0))
    bench.enqueue(*(f"a{n}" for n in range(failing)))
    bench.enqueue("b")
    for n in range(failing):
        effects = bench.fail(f"a{n}", AttemptErrorKind.ENGINE_ERROR)
        assert placed(effects) == (["b"] if n == 0 else [])
    bench.end("b")

    assert placed(bench.enqueue("c")) == [], "the bound is reached"
    assert placed(bench.step(CancelRequested("a0", 0))) == ["c"]


def test_no_step_looks_at_every_waiting_job() -> None:
    """LO-208: with one slot free, one lane of many jobs costs one placement."""
    bench = Bench(wide(slots=1), queue_capacity=3_000)
    bench.enqueue(*(f"j{n}" for n in range(2_000)))
    looked_at: list[int] = []
    queue = bench.state.queue
    by_seq = dict(queue._by_seq)

    class Counting(dict):  # type: ignore[type-arg]
        """Counts look-ups."""

        def __getitem__(self, seq: int) -> object:
            looked_at.append(seq)
            return super().__getitem__(seq)

    queue._by_seq = Counting(by_seq)
    effects = bench.end("j0")

    assert placed(effects) == ["j1"]
    assert len(looked_at) <= 2
    assert queue.depth(Priority.INTERACTIVE) == 1_998


@pytest.mark.parametrize("others", [0, 3])
def test_a_pool_that_became_stale_in_this_very_step_gets_nothing(others: int) -> None:
    """ORCH-3010: its timer is due, but the event comes first; however the pools are searched."""
    bench = Bench(wide(), *(wide(f"q{n}", model_id="n") for n in range(others)))
    bench.register(snapshot("busy", slots_free=0, host_id="g"), host="g")

    late = only(bench.step(EnqueueRequested(spec("a"), 0), 5_001), DispatchRecord)
    bench.register(wide())
    timely = only(bench.step(EnqueueRequested(spec("b"), 0), 10_001), DispatchRecord)

    assert late == []
    assert [record.job_id for record in timely] == ["b"]


def test_a_decision_tells_why_every_other_pool_was_out() -> None:
    """LO-207: busy, unready and unfit pools are in the record beside the one that was scored."""
    bench = Bench(
        snapshot("busy", slots_free=0),
        wide("open"),
        wide("other", model_id="n"),
        wide("starting", state=PoolState.STARTING),
    )

    (record,) = only(bench.enqueue("a"), DispatchRecord)

    decision = record.decision
    reasons = {
        exclusion.pool_id: [shortfall.reason for shortfall in exclusion.shortfalls]
        for exclusion in decision.exclusions
    }
    assert decision.pool_id == "open"
    assert reasons == {
        "busy": [ExclusionReason.NO_SLOT],
        "starting": [ExclusionReason.NOT_READY],
        "other": [ExclusionReason.MODEL],
    }
    assert (decision.candidates_total, decision.exclusions_total) == (1, 3)


def test_a_turn_waits_for_the_pool_that_has_its_cache() -> None:
    """ORCH-3009: reading ten thousand tokens again takes longer than the job that is before it."""
    bench = session_bench()
    turn = {"session_id": "s", "kv_reuse": True, "prompt_bytes": 40_000, "expected_tokens": 10}

    assert placed(bench.enqueue("second", **turn)) == []
    assert [
        e.shortfalls[0].reason for e in bench.core.waiting_for(bench.core.jobs["second"], 1_000)
    ] == [
        ExclusionReason.NO_SLOT,
        ExclusionReason.DECLINED,
    ]
    (record,) = only(bench.end("other"), DispatchRecord)

    assert (record.job_id, record.pool_id) == ("second", "a")
    assert record.decision.candidates[0].kv_warm


def test_affinity_is_no_right_to_a_slot_that_others_can_use() -> None:
    """Design 5.6: the slot that a turn lets pass goes to the job behind it."""
    bench = session_bench()
    turn = {"session_id": "s", "kv_reuse": True, "prompt_bytes": 40_000, "expected_tokens": 10}

    bench.enqueue("second", **turn)

    assert placed(bench.enqueue("third", expected_tokens=10)) == ["third"]


def test_a_turn_without_the_hint_goes_where_it_ends_first() -> None:
    """`kv_hint` NONE says that the cache is not worth going back to."""
    bench = session_bench()

    effects = bench.enqueue("second", session_id="s", prompt_bytes=40_000, expected_tokens=10)

    assert placed(effects) == ["second"]
