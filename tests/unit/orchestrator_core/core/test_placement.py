"""Placement against a naive oracle. LO-202, LO-203, LO-204, ORCH-3010, ORCH-3012."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.core.config import Scorer
from orchestrator_core.core.decision import Decision, ExclusionReason
from orchestrator_core.core.job import Attempt
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.placement import (
    NoCapacity,
    NoCapacityKind,
    PlacementInput,
    decision,
    place,
    uncached_tokens,
)
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Needs, Shape
from tests.unit.orchestrator_core.core.build import pool, spec
from tests.unit.orchestrator_core.core.oracle import (
    Question,
    memory_left,
    naive_winner,
    slots_taken,
)
from tests.unit.orchestrator_core.core.settings import STEADY

NOW_MS = 100
# Few values per field, so that ties are common and every tie-break is met.
FEW = st.integers(0, 2)


@st.composite
def pools(draw: st.DrawFn, number: int) -> Pool:
    """A pool with own and reported attempts, of which some are the same."""
    running = tuple((f"r{number}", n) for n in range(draw(FEW)))
    made = pool(
        f"p{number}",
        as_of_ms=draw(st.sampled_from((NOW_MS, NOW_MS, 50, 49))),
        state=draw(st.sampled_from((*[PoolState.READY] * 6, *PoolState))),
        model_id=draw(st.sampled_from("mmmn")),
        slots_total=draw(st.integers(-1, 4)),
        slots_free=draw(st.integers(-1, 5)),
        kv_free_bytes=draw(st.sampled_from((None, -3, 3, 6))),
        vram_free_bytes=draw(st.sampled_from((None, 4))),
        perf_tokens_per_s=draw(st.sampled_from((None, 10.0, 20.0, 0.0, -1.0, float("nan")))),
        warm_session_ids=draw(st.sampled_from(((), ("s",)))),
        ctx_max=draw(st.sampled_from((2048, 4096))),
        running=running,
    )
    for n in range(draw(FEW)):
        key = (f"r{number}", n + draw(FEW))
        made.own[key] = Attempt(*key, made.snapshot.pool_id, "", "h", 0, est_kv_bytes=draw(FEW))
    made.connected = draw(st.sampled_from((True, True, True, False)))
    made.closed_until_ms = draw(st.sampled_from((0, NOW_MS, NOW_MS + 1)))
    made.room_idle_bytes = None
    return made


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """A job and up to six pools in any order."""
    fleet = [draw(pools(number)) for number in range(draw(st.integers(0, 6)))]
    ids = [p.snapshot.pool_id for p in fleet] or ["p0"]
    return Question(
        spec=spec(
            needs=Needs("m", required_ctx=draw(st.sampled_from((None, 2048, 4096)))),
            session_id=draw(st.sampled_from(("", "s"))),
            est_kv_bytes=draw(st.sampled_from((None, 0, 2, 5))),
            expected_tokens=10,
        ),
        pools=draw(st.permutations(fleet)),
        now_ms=NOW_MS,
        stale_after_ms=50,
        scoring=draw(st.booleans()),
        warm_pool_id=draw(st.sampled_from(("", *ids))),
        tried=frozenset(draw(st.sampled_from(((), (f"{ids[0]}#1",))))),
        reserved=draw(st.sampled_from(({}, {ids[-1]: "older"}))),
    )


def ask(question: Question, prompt_tokens: float = 0.0) -> Decision | NoCapacity:
    """Puts the oracle's question to the real placement."""
    for each in question.pools:
        each.rates.seed(each.snapshot)
        each.note(question.now_ms, question.stale_after_ms)
    request = PlacementInput(
        spec=question.spec,
        shape=Shape(prompt_tokens, 10.0),
        attempt=1,
        now_ms=question.now_ms,
        waited_ms=0,
        pools=question.pools,
        stale_after_ms=question.stale_after_ms,
        scorer=Scorer.PREDICTED_END if question.scoring else Scorer.OFF,
        warm_session=question.spec.session_id,
        warm_pool_id=question.warm_pool_id,
        tried_replicas=question.tried,
        reserved=question.reserved,
    )
    answer = place(request)
    return answer if isinstance(answer, NoCapacity) else decision(request, answer)


def simple(*fleet: Pool, scoring: bool = True, **fields: object) -> Question:
    """A question with nothing special about it."""
    asked = spec(expected_tokens=10, **fields)
    return Question(asked, list(fleet), NOW_MS, 1_000, scoring, "", frozenset(), {})


@settings(STEADY, max_examples=400)
@given(questions())
def test_it_agrees_with_the_oracle(question: Question) -> None:
    """The same winner, or none, for sound, absent, stale and malformed pools alike."""
    answer = ask(question)

    winner = answer.pool_id if isinstance(answer, Decision) else None
    assert winner == naive_winner(question)


@STEADY
@given(questions(), st.randoms(use_true_random=False))
def test_the_order_of_pools_does_not_matter(question: Question, rng: object) -> None:
    """The whole record is the same for every permutation of the pools."""
    shuffled = list(question.pools)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]

    assert ask(question) == ask(replace(question, pools=shuffled))


@STEADY
@given(questions())
def test_nothing_is_assigned_beyond_slots_or_memory(question: Question) -> None:
    """LO-204: the winner has a free slot and room for the keys and values."""
    answer = ask(question)

    if isinstance(answer, Decision):
        winner = next(p for p in question.pools if p.snapshot.pool_id == answer.pool_id)
        room = memory_left(winner)
        assert slots_taken(winner) < winner.snapshot.slots_total
        assert room is None or (question.spec.est_kv_bytes or 0) <= room
        assert winner.snapshot.state is PoolState.READY
        assert winner.connected


@STEADY
@given(questions())
def test_every_pool_is_a_candidate_or_excluded_with_a_reason(question: Question) -> None:
    """The record counts all pools; what was excluded says why."""
    answer = ask(question)

    if isinstance(answer, Decision):
        record = answer
        assert record.candidates_total + record.exclusions_total == len(question.pools)
        assert record.candidates[0].pool_id == record.pool_id
        assert len(record.candidates) <= 5
        exclusions = record.exclusions
    else:
        exclusions = answer.exclusions
        assert len(exclusions) == len(question.pools)
    assert all(exclusion.shortfalls for exclusion in exclusions)


@pytest.mark.parametrize(
    ("first", "second", "decided_by"),
    [
        ({"perf_tokens_per_s": 30.0}, {"perf_tokens_per_s": 20.0}, "score"),
        ({"warm_session_ids": ("s",)}, {"slots_total": 3, "slots_free": 3}, "warm_kv"),
        ({"slots_total": 3, "slots_free": 3}, {"kv_free_bytes": 99}, "slots_free"),
        ({"kv_free_bytes": 9}, {"kv_free_bytes": 8}, "vram_headroom"),
        ({"kv_free_bytes": 0}, {}, "vram_headroom"),
        # The same end by another mix: slower to start, faster to decode.
        (
            {"perf_tokens_per_s": 20.0, "first_token_ms": 500},
            {"perf_tokens_per_s": 10.0, "first_token_ms": 0},
            "tokens_per_s",
        ),
        ({}, {}, "pool_id"),
    ],
)
def test_ties_are_broken_in_the_order_of_the_design(
    first: dict[str, object], second: dict[str, object], decided_by: str
) -> None:
    """Each rule decides where all rules before it are equal, and the record names it."""
    winner = "a" if decided_by == "pool_id" else "b"
    loser = "b" if decided_by == "pool_id" else "a"
    question = simple(pool(loser, NOW_MS, **second), pool(winner, NOW_MS, **first), session_id="s")

    answer = ask(question)

    assert isinstance(answer, Decision)
    assert (answer.pool_id, answer.decided_by) == (winner, decided_by)


def test_without_scoring_throughput_does_not_count() -> None:
    """ORCH-3012: least loaded, then memory, then the name; a faster pool has no advantage."""
    slow = pool("a", NOW_MS, perf_tokens_per_s=1.0)
    fast = pool("b", NOW_MS, perf_tokens_per_s=100.0)

    answer = ask(simple(fast, slow, scoring=False))

    assert isinstance(answer, Decision)
    assert answer.pool_id == "a"
    assert [c.predicted_end_ms for c in answer.candidates] == [10_200, 300]


def test_a_pool_with_lowered_clocks_counts_as_that_much_slower() -> None:
    """ORCH-3040: every part of the predicted end is divided by the factor, which is recorded."""
    well = pool("a", NOW_MS, perf_tokens_per_s=20.0, first_token_ms=100)
    slowed = pool("b", NOW_MS, perf_tokens_per_s=20.0, first_token_ms=100, perf_scale=0.5)
    faster = pool("c", NOW_MS, perf_tokens_per_s=30.0, first_token_ms=100, perf_scale=0.5)

    answer = ask(simple(well, slowed, faster))

    assert isinstance(answer, Decision)
    a, c, b = answer.candidates
    assert (a.pool_id, b.pool_id, c.pool_id) == ("a", "b", "c")
    assert b.predicted_end_ms == 2 * a.predicted_end_ms
    assert b.first_token_ms == 2 * a.first_token_ms
    assert (a.tokens_per_s, b.tokens_per_s, c.tokens_per_s) == (20.0, 10.0, pytest.approx(15.0))
    assert (a.perf_scale, b.perf_scale) == (1.0, 0.5)


def test_the_record_tells_the_prompts_part_of_the_first_token() -> None:
    """What is not the prompt is the pool's own delay, which is the same for every job."""
    one = pool("a", NOW_MS, perf_tokens_per_s=20.0, first_token_ms=100, prefill_tokens_per_s=100.0)
    short, long = ask(simple(one), 50.0), ask(simple(one), 250.0)

    assert isinstance(short, Decision)
    assert isinstance(long, Decision)
    (few,), (many,) = short.candidates, long.candidates
    assert (few.prompt_ms, many.prompt_ms) == (500, 2_500)
    assert few.first_token_ms - few.prompt_ms == many.first_token_ms - many.prompt_ms == 100
    assert few.decode_ms == few.predicted_end_ms - few.first_token_ms


@pytest.mark.parametrize(
    ("fleet", "kind"),
    [
        ([], NoCapacityKind.NO_FRESH_POOL),
        ([pool("a", -5_000)], NoCapacityKind.NO_FRESH_POOL),
        ([pool("a", NOW_MS, state=PoolState.DRAINING)], NoCapacityKind.NO_FRESH_POOL),
        ([pool("a", NOW_MS, slots_free=0)], NoCapacityKind.EXHAUSTED),
        ([pool("a", NOW_MS, slots_total=-1)], NoCapacityKind.EXHAUSTED),
        ([pool("a", -5_000), pool("b", NOW_MS, slots_free=0)], NoCapacityKind.EXHAUSTED),
        ([pool("a", NOW_MS, model_id="n")], NoCapacityKind.INCOMPATIBLE),
        ([pool("a", NOW_MS, model_id="n"), pool("b", -5_000)], NoCapacityKind.NO_FRESH_POOL),
    ],
)
def test_no_capacity_says_never_or_not_now(fleet: list[Pool], kind: NoCapacityKind) -> None:
    """LO-203: absent and stale pools give an answer, not a crash."""
    answer = ask(simple(*fleet))

    assert isinstance(answer, NoCapacity)
    assert answer.kind is kind
    never = kind is NoCapacityKind.INCOMPATIBLE
    assert answer.incompatible is (Reason.INCOMPATIBLE_MODEL if never else None)


def test_every_dynamic_shortfall_is_listed() -> None:
    """What did not fit is complete, not the first failure."""
    hopeless = pool("a", 0, state=PoolState.UNREADY, slots_free=0, kv_free_bytes=1)
    hopeless.closed_until_ms = NOW_MS + 5
    question = replace(
        simple(hopeless, est_kv_bytes=2),
        stale_after_ms=50,
        tried=frozenset({"a#1"}),
        reserved={"a": "older"},
    )

    answer = ask(question)

    assert isinstance(answer, NoCapacity)
    assert [s.reason for s in answer.exclusions[0].shortfalls] == [
        ExclusionReason.NOT_READY,
        ExclusionReason.STALE,
        ExclusionReason.NO_SLOT,
        ExclusionReason.NOT_READY,
        ExclusionReason.TRIED,
        ExclusionReason.KV_ROOM,
        ExclusionReason.RESERVED,
    ]


@pytest.mark.parametrize(("warm_tokens", "left"), [(900, 100.0), (2_000, 1.0), (None, 500.0)])
def test_only_where_a_session_is_warm_its_prompt_is_not_read_again(
    warm_tokens: int | None, left: float
) -> None:
    """ORCH-3009: what the pool that served it holds need not be read; elsewhere all of it."""
    fleet = [
        pool("warm", NOW_MS),
        pool("cold", NOW_MS),
        pool("says", NOW_MS, warm_session_ids=("s",)),
    ]
    request = PlacementInput(
        spec=spec(session_id="s"),
        warm_session="s",
        shape=Shape(1_000.0, 10.0),
        attempt=1,
        now_ms=NOW_MS,
        waited_ms=0,
        pools=fleet,
        stale_after_ms=1_000,
        warm_pool_id="warm",
        warm_tokens=warm_tokens,
    )

    assert [uncached_tokens(request, each) for each in fleet] == [left, 1_000.0, 500.0]
