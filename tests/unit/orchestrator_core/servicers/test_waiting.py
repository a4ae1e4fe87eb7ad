"""Why a job waits, in words that an operator can act on. LO-207."""

import pytest

from orchestrator_core.core.decision import ExclusionReason
from orchestrator_core.core.events import (
    AttemptRefused,
    DrainRequested,
    HostLost,
    PoolDrainRequested,
    Recovered,
)
from orchestrator_core.core.records import AcceptRecord
from orchestrator_core.core.snapshot import PoolSnapshot, PoolState
from orchestrator_core.core.spec import Needs
from orchestrator_core.servicers.waiting import Waiting, why_waiting
from tests.unit.orchestrator_core.core.bench import Bench, only, session_bench
from tests.unit.orchestrator_core.core.build import snapshot

GIB = 2**30


def why(bench: Bench, job_id: str) -> Waiting:
    """What is said of a waiting job."""
    job = bench.core.jobs[job_id]
    lacking = bench.core.waiting_for(job, bench.now_ms)
    told = why_waiting(bench.core, job, lacking, bench.now_ms)
    assert sum(cause.pools_total for cause in told.causes) == len(lacking)
    return told


def sentences(told: Waiting) -> list[str]:
    """The causes, the nearest to being over first."""
    return [cause.sentence for cause in told.causes]


def test_busy_slots_tell_the_place_in_line_and_the_start() -> None:
    """The ordinary wait: how long, and what would shorten it."""
    bench = Bench(snapshot("gpu-a"), snapshot("gpu-b"))
    bench.enqueue("a", "b", "c", "d")

    told = why(bench, "d")

    assert told.summary.startswith(
        "Every slot that it could use is taken. It is number 2 in line (interactive) and should "
        "start in "
    )
    assert sentences(told) == ["2 pools without a free slot: gpu-a, gpu-b"]
    assert told.causes[0].remedy == "another pool of m, or more slots"


def test_pools_that_are_not_ready_are_told_with_their_different_reasons() -> None:
    """Equal reasons stand together, those of most pools first; the rest is counted."""
    bench = Bench(snapshot("old"))
    bench.enqueue("first", "waits")
    reasons = ["PRELOAD_FAILED"] * 3 + [f"REASON_{n}" for n in range(6)]
    bench.register(
        snapshot("old", version=2, state=PoolState.STARTING, slots_free=0),
        *(
            snapshot(
                f"p{n}", state=PoolState.UNREADY, state_reason=why, state_detail="x", slots_free=0
            )
            for n, why in enumerate(reasons)
        ),
    )

    told = why(bench, "waits")

    assert told.summary.startswith("A pool that could serve it is starting. It is number 2 in line")
    assert sentences(told) == [
        "1 pool starting: old",
        (
            "9 pools not ready: p0, p1, p2 (PRELOAD_FAILED: x); p3 (REASON_0: x); "
            "p4 (REASON_1: x); p5 (REASON_2: x); and 3 more for 3 other reasons"
        ),
    ]
    assert "`systemctl reload pool-managerd` at h" in told.causes[1].remedy


def test_drained_pools_name_the_commands_that_end_it() -> None:
    """OC-CTRL-2002: all of them, as far as anybody would type them."""
    pools = [snapshot(f"p{n}", slots_total=1) for n in range(6)]
    bench = Bench(*pools)
    for pool in pools:
        bench.step(PoolDrainRequested(pool.pool_id, draining=True, timeout_ms=1_000, reply_to=0))
    bench.enqueue("waits")

    told = why(bench, "waits")

    assert told.summary.startswith("What could serve it is drained by an operator.")
    assert sentences(told) == ["6 pools drained by an operator: p0, p1, p2 and 3 more"]
    assert told.causes[0].remedy == (
        "`llorch undrain p0` or `llorch undrain p1` or `llorch undrain p2` lets it take work again"
    )
    assert told.causes[0].pool_ids == tuple(pool.pool_id for pool in pools)


def test_a_host_that_is_away_is_named() -> None:
    """Its pools' states of then are no news."""
    bench = Bench(snapshot("gpu-a"))
    bench.register(snapshot("other", model_id="n", host_id="h2"), host="h2")
    bench.enqueue("runs", "waits")
    bench.step(HostLost("h", 1))

    told = why(bench, "waits")

    assert told.summary.startswith("No host that could serve it is connected.")
    assert sentences(told) == [
        "1 pool on a host that is not connected: gpu-a (host h)",
        "1 pool with another model: other (n)",
    ]
    assert "bring h back" in told.causes[0].remedy


def test_memory_that_others_use_is_told_apart_from_memory_that_is_not_there() -> None:
    """In GiB, not in bytes."""
    bench = Bench(
        snapshot("big", slots_total=2, slots_free=2, kv_free_bytes=10 * GIB),
        snapshot("small", slots_total=2, slots_free=2, kv_free_bytes=4 * GIB),
    )
    bench.enqueue("first", est_kv_bytes=8 * GIB)
    bench.enqueue("second", est_kv_bytes=6 * GIB)

    told = why(bench, "second")

    assert told.summary.startswith("The memory that it needs is in use by other jobs.")
    assert sentences(told) == [
        (
            "1 pool with too little free memory: big "
            "(free memory for keys and values: needs 6.00 GiB, has 2.00 GiB)"
        ),
        (
            "1 pool that cannot serve it: small "
            "(free memory for keys and values: needs 6.00 GiB, has 4.00 GiB)"
        ),
    ]


def test_a_pool_that_is_kept_for_an_older_job_is_not_told_to_be_free() -> None:
    """ORCH-3008: the younger one learns for whom it waits."""
    bench = Bench(snapshot("big", slots_total=3, slots_free=3, kv_free_bytes=10 * GIB))
    bench.enqueue("first", est_kv_bytes=8 * GIB)
    bench.enqueue("large", est_kv_bytes=6 * GIB)
    bench.enqueue("younger", est_kv_bytes=GIB)

    told = why(bench, "younger")

    assert told.summary.startswith("What it could use is kept for an older job.")
    assert sentences(told) == ["1 pool kept for an older job: big (kept for large)"]
    assert told.causes[0].reason is ExclusionReason.RESERVED


def test_a_session_that_waits_for_its_cache_says_how_long_at_most() -> None:
    """ORCH-3009: a free slot elsewhere is let pass, which looks like a mistake otherwise."""
    bench = session_bench()
    turn = {"session_id": "s", "kv_reuse": True, "prompt_bytes": 40_000, "expected_tokens": 10}
    bench.enqueue("second", **turn)

    told = why(bench, "second")

    assert told.summary.startswith("A slot is free, but waiting for a faster pool should end it")
    assert [cause.reason for cause in told.causes] == [
        ExclusionReason.DECLINED,
        ExclusionReason.NO_SLOT,
    ]
    assert sentences(told)[0].startswith("1 pool slower than one worth waiting for: b (an end in ")
    assert told.causes[0].remedy.startswith("after 30.0 s (placement.decline_max_ms) it takes")


def test_a_refusal_closes_a_pool_for_a_moment_only() -> None:
    """With the time until it is asked again, not with an instant of the core's clock."""
    bench = Bench(snapshot("p"))
    bench.enqueue("a")
    bench.step(AttemptRefused("a", 1, "no slot"))

    told = why(bench, "a")

    assert told.summary.startswith(
        "A pool that could serve it refused it, and is asked again in a moment."
    )
    assert sentences(told)[0].startswith("1 pool that refused it a moment ago: p (asked again in ")


def test_a_hundred_pools_are_a_few_lines() -> None:
    """Every cause is one sentence, however many pools it has and however they differ."""
    bench = Bench(
        snapshot("p"),
        *(snapshot(f"other-{n:02d}", model_id=f"model-{n:02d}") for n in range(40)),
        *(snapshot(f"short-{n:02d}", ctx_max=16 + n) for n in range(59)),
    )
    bench.enqueue("runs", "waits", needs=Needs(model_id="m", required_ctx=2_048))

    told = why(bench, "waits")

    assert sentences(told) == [
        "1 pool without a free slot: p",
        "59 pools that cannot serve it: "
        + "; ".join(
            f"short-{n:02d} (tokens of context: needs 2048, has {16 + n})" for n in range(4)
        )
        + "; and 55 more for 55 other reasons",
        (
            "40 pools with another model: other-00 (model-00); other-01 (model-01); "
            "other-02 (model-02); other-03 (model-03); and 36 more for 36 other reasons"
        ),
    ]


def test_a_drain_of_the_orchestrator_is_the_answer() -> None:
    """What pools lack does not matter then."""
    bench = Bench(snapshot("p"))
    bench.enqueue("runs", "waits")
    bench.step(DrainRequested())

    assert why(bench, "waits").summary == (
        "orchestratord shuts down: the job waits for its next start."
    )


@pytest.mark.parametrize("others", [(), (snapshot("other", model_id="n", host_id="h2"),)])
def test_after_a_restart_it_is_said_that_hosts_may_be_on_their_way(
    others: tuple[PoolSnapshot, ...],
) -> None:
    """Nothing is wrong yet; and what would help if none comes."""
    accepts = tuple(only(Bench(snapshot("gpu-a")).enqueue("runs", "waits"), AcceptRecord))
    bench = Bench(reattach_grace_ms=15_000)
    bench.step(Recovered(accepts=accepts))
    if others:
        bench.register(*others, host="h2")

    told = why(bench, "waits")

    assert told.summary == (
        "No pool that could serve it is back yet: orchestratord was restarted, and hosts that are "
        "on their way have 15.0 s more. It is number 2 in line (interactive); when it starts is "
        "not known."
    )


def test_without_any_pool_it_is_said_what_to_start() -> None:
    """The host of the only pool was away for too long, or was never there."""
    bench = Bench(snapshot("gpu-a"))
    bench.enqueue("runs", "waits")
    bench.register(host="h")

    told = why(bench, "waits")

    assert told.summary.startswith("No pool is registered. It is number ")
    assert told.remedy.startswith("start pool-managerd on a GPU host")
    assert told.causes == ()
