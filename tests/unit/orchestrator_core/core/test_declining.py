"""Jobs let slow slots pass where that pays, for so long, and nobody else is harmed. LO-202."""

from dataclasses import replace
from typing import Any

from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.effects import Effect, OfferDeclined
from orchestrator_core.core.events import (
    AttemptErrorKind,
    AttemptStarted,
    CancelRequested,
    HostLost,
    OutputProgressed,
)
from orchestrator_core.core.prediction import PRIOR_OUTPUT_TOKENS
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import Failover
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import snapshot

# A job of as many tokens as are expected of any: a second on the fast pool, four on the slow one.
TOKENS = int(PRIOR_OUTPUT_TOKENS)
FAST = {"perf_tokens_per_s": float(TOKENS), "prefill_tokens_per_s": 9e8, "first_token_ms": 0}
SLOW = {**FAST, "perf_tokens_per_s": TOKENS / 4}
MAX_MS = 10_000


def fast(slots: int = 1, **fields: Any) -> PoolSnapshot:
    """The pool for which it pays to wait, on host `h`."""
    return wide("fast", slots, **{**FAST, **fields})


def slow(slots: int = 1, **fields: Any) -> PoolSnapshot:
    """The other one, on host `g`."""
    return wide("slow", slots, host_id="g", **{**SLOW, **fields})


def homelab(**config: Any) -> Bench:
    """One slot on each."""
    bench = Bench(fast(), stale_after_ms=10**9, decline_max_ms=MAX_MS, **config)
    bench.register(slow(), host="g")
    return bench


def queued(bench: Bench, *job_ids: str, **fields: Any) -> list[Effect]:
    """Mean jobs; fewer arrive than it takes to tell a rate."""
    return bench.enqueue(*job_ids, expected_tokens=TOKENS, **fields)


def placed(effects: list[Effect]) -> dict[str, str]:
    """Where each job of a step went, in order."""
    return {record.job_id: record.pool_id for record in only(effects, DispatchRecord)}


def test_a_job_waits_for_the_faster_pool_and_gets_it() -> None:
    """It is told of once, and the decision counts every offer that was declined."""
    bench = homelab()

    effects = queued(bench, "a", "b")
    bench.now_ms = 300
    again = bench.step(CancelRequested("nobody", 0)) + bench.report(slow(version=2))
    bench.now_ms = 1_000
    ended = bench.end("a")

    assert placed(effects) == {"a": "fast"}
    assert only(effects, OfferDeclined) == [OfferDeclined("b", "slow", 4_000, 2_000)]
    assert only(again, OfferDeclined) == []
    (record,) = only(ended, DispatchRecord)
    assert (record.job_id, record.pool_id) == ("b", "fast")
    assert record.decision.declined_offers == 2
    assert only(effects, DispatchRecord)[0].decision.declined_offers == 0


def test_nobody_waits_for_a_pool_that_is_free() -> None:
    """What is expected of pools is made anew now and then only; a free one is not to be waited for.

    A job that is alone would teach nothing while it waits, so the error would last.
    """
    bench = homelab()
    queued(bench, "a")
    bench.end("a")
    known = bench.state.outlooks
    for needs, view in known.items():
        better = [replace(tier, token_ms=tier.token_ms / 10) for tier in view.tiers]
        known[needs] = replace(view, tiers=tuple(better))

    effects = queued(bench, "b")

    assert placed(effects) == {"b": "fast"}
    assert only(effects, OfferDeclined) == []


def test_who_asks_is_told_both_ends() -> None:
    """The slow pool is out because the job declines it; the fast one has no slot."""
    bench = homelab()
    queued(bench, "a", "b")

    reasons = {e.pool_id: e.shortfalls for e in bench.core.waiting_for(bench.state.jobs["b"], 0)}

    (declined,) = reasons["slow"]
    assert declined.reason is ExclusionReason.DECLINED
    assert declined.required == "an end within 2000 ms, as predicted elsewhere"
    assert declined.offered == "an end in 4000 ms"
    assert [s.reason for s in reasons["fast"]] == [ExclusionReason.NO_SLOT]


def test_the_offer_goes_down_to_the_job_for_which_it_pays() -> None:
    """Two seconds for the first in line, three for the second; the third takes four here."""
    bench = homelab()

    effects = queued(bench, "a", "b", "c", "d")

    assert placed(effects) == {"a": "fast", "d": "slow"}
    assert [e.job_id for e in only(effects, OfferDeclined)] == ["b", "c"]


def test_a_slot_that_should_be_used_goes_to_who_loses_least() -> None:
    """Nobody ends sooner there, but not by enough to leave it idle; the last in line takes it.

    The two that wait would end in two and three seconds on the fast pool, in 3.2 here.
    """
    bench = Bench(fast(), stale_after_ms=10**9)
    queued(bench, "a", "b", "c")

    effects = bench.register(slow(perf_tokens_per_s=TOKENS / 3.2), host="g")

    assert placed(effects) == {"c": "slow"}
    assert [(e.job_id, e.elsewhere_ms) for e in only(effects, OfferDeclined)] == [
        ("b", 2_000),
        ("c", 3_000),
    ]


def test_nobody_declines_for_longer_than_the_bound() -> None:
    """Up to the last millisecond; then the job takes what there is, by a timer of its own."""
    bench = homelab()
    queued(bench, "a", "b")

    assert bench.core.next_deadline_ms() == MAX_MS
    assert placed(bench.at(MAX_MS - 1)) == {}
    assert placed(bench.at(MAX_MS)) == {"b": "slow"}


def test_who_waited_for_a_pool_that_is_lost_takes_the_other_at_once() -> None:
    """No report of anybody need come first."""
    bench = homelab()
    queued(bench, "a", "b")

    effects = bench.step(HostLost("h", 1), 100)

    assert placed(effects) == {"b": "slow"}


def test_the_bound_holds_for_a_job_that_failed_meanwhile() -> None:
    """A retry goes on where it left off: the time before counts, and a timer ends it."""
    bench = homelab(refusal_backoff_ms=2 * MAX_MS, refusal_backoff_max_ms=2 * MAX_MS)
    bench.register(wide("other", 1, host_id="f", **FAST), host="f")
    queued(bench, "a", "c", "b")
    bench.now_ms = 1_000
    assert list(placed(bench.end("a"))) == ["b"]
    bench.now_ms = 1_500

    effects = bench.fail("b", AttemptErrorKind.ENGINE_DIED)

    assert placed(effects) == {}
    assert placed(bench.at(MAX_MS - 1)) == {}
    assert placed(bench.at(MAX_MS)) == {"b": "slow"}


def test_the_gates_turn_it_off() -> None:
    """ORCH-3012: nobody waits where offers may not be declined or speed does not count."""
    for config in ({"decline_offers": False}, {"performance_scoring": False}):
        effects = queued(homelab(**config), "a", "b")

        assert sorted(placed(effects).values()) == ["fast", "slow"], config
        assert only(effects, OfferDeclined) == []


def test_nobody_waits_for_a_pool_that_could_never_hold_the_job() -> None:
    """LO-201: a large job takes the slow pool, which alone has the memory for it, at once."""
    bench = Bench(fast(kv_free_bytes=10), stale_after_ms=10**9)
    bench.register(slow(kv_free_bytes=100), host="g")

    assert placed(queued(bench, "a", est_kv_bytes=50)) == {"a": "slow"}


def test_nobody_waits_for_a_pool_that_it_failed_on() -> None:
    """A retry goes to the replica that is left, at once."""
    bench = homelab()
    queued(bench, "a")

    effects = bench.fail("a", AttemptErrorKind.ENGINE_ERROR)

    assert placed(effects) == {"a": "slow"}


def test_a_replay_does_not_wait_for_pools_outside_its_replica_set() -> None:
    """LO-304: what was delivered can only be repeated where it was generated."""
    bench = Bench(fast(engine_version="2"), stale_after_ms=10**9)
    bench.register(slow(), host="g")
    queued(bench, "x")
    queued(bench, "a", failover=Failover.VERIFIED_REPLAY)
    bench.at(MAX_MS * 3)
    assert bench.state.jobs["a"].attempt is not None
    bench.step(AttemptStarted("a", 1))
    bench.step(OutputProgressed("a", 1, pieces=1))

    bench.register(slow(replica_id="slow#2"), host="g")

    attempt = bench.state.jobs["a"].attempt
    assert attempt is not None
    assert (attempt.number, attempt.pool_id) == (2, "slow")


def test_an_offer_that_was_declined_does_not_take_memory_from_who_took_it() -> None:
    """LO-204: the younger job fills the memory; the older one, that declined, goes without."""
    bench = Bench(fast(), stale_after_ms=10**9)
    queued(bench, "a")
    queued(bench, "b", "c", "d", est_kv_bytes=8)

    effects = bench.register(slow(2, kv_free_bytes=10), host="g")

    assert placed(effects) == {"d": "slow"}
    room_bytes = bench.state.pools["slow"].kv_room_bytes()
    assert room_bytes == 2


def test_batch_takes_what_interactive_declines() -> None:
    """The batch job is behind all of them, so the slow slot is what it gets first."""
    bench = homelab()

    effects = queued(bench, "a", "b", "c")
    effects += queued(bench, "batch", batch=True)

    assert placed(effects) == {"a": "fast", "batch": "slow"}


def test_a_declined_slot_is_there_for_another_model() -> None:
    """Who cannot use the fast pool does not care how long its queue is."""
    bench = homelab()
    bench.register(snapshot("other", model_id="n", host_id="f", **SLOW), host="f")
    queued(bench, "a", "b")

    assert placed(queued(bench, "n", model="n")) == {"n": "other"}
