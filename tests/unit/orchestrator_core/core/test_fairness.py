"""Fairness between identities and turns between classes. LO-103, LO-104, ORCH-3008."""

import random
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.effects import Effect
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptRefused,
    CancelRequested,
)
from orchestrator_core.core.fairness import OUTPUT_WEIGHT
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.spec import Priority
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.settings import STEADY

PROMPT_TOKENS = 5


def bench_of(slots: int = 1, **config: Any) -> Bench:
    """One pool, fair between identities unless told otherwise."""
    fields = {"token_fairness": True, "queue_capacity": 10_000, **config}
    return Bench(wide(slots=slots), stale_after_ms=10**9, decline_offers=False, **fields)


def placed(effects: list[Effect]) -> list[str]:
    """Jobs in the order in which they were placed."""
    return [record.job_id for record in only(effects, DispatchRecord)]


def ended(bench: Bench, job_id: str, tokens_out: int, attempt: int = 1) -> list[str]:
    """A job ends; returns who is placed then."""
    usage = Usage(tokens_in=PROMPT_TOKENS, tokens_out=tokens_out)
    event = AttemptEnded(job_id, attempt, 1, finish=Finish.EOS, usage=usage)
    return placed(bench.step(event))


def drained(bench: Bench, first: str, tokens: dict[str, int]) -> list[str]:
    """Ends one job after the other on a single slot; returns the order of placement."""
    order, running = [first], first
    while following := ended(bench, running, tokens[running]):
        (running,) = following
        order.append(running)
    return order


@STEADY
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_backlogged_identities_are_served_alike_up_to_one_job(
    rng: random.Random, hint_error: int
) -> None:
    """While all wait, the counters of any two differ by at most one job each, at every placement.

    Source of the bound: Sheng et al., OSDI 2024, theorem 4.4, with one slot and known lengths. What
    a job takes beyond its hint is settled at its end, which adds at most that.
    """
    bench = bench_of()
    tokens = {"zero": 1}
    bench.enqueue("zero", identity="", expected_tokens=1)
    owner = {}
    for n in range(90):
        job_id, who = f"j{n}", "abc"[n % 3]
        tokens[job_id] = rng.choice((1, 5, 20)) * (5 if who == "a" else 1)
        owner[job_id] = who
        hint = max(1, tokens[job_id] + rng.randint(-hint_error, hint_error))
        bench.enqueue(job_id, identity=who, expected_tokens=hint)
    largest = 2 * (PROMPT_TOKENS + OUTPUT_WEIGHT * (100 + hint_error))

    order, running = [], "zero"
    served = dict.fromkeys("abc", 0.0)
    left = dict.fromkeys("abc", 30)
    while all(left.values()):
        (running,) = ended(bench, running, tokens[running])
        order.append(running)
        who = owner[running]
        left[who] -= 1
        served[who] += PROMPT_TOKENS + OUTPUT_WEIGHT * tokens[running]
        assert max(served.values()) - min(served.values()) <= largest

    assert len(order) > 30
    for who in "abc":
        mine = [int(job_id[1:]) for job_id in order if owner[job_id] == who]
        assert mine == sorted(mine), "first in, first out within an identity"


def test_who_sends_small_jobs_gets_more_of_them() -> None:
    """Ten tokens against forty: four to one, by tokens and not by jobs."""
    bench = bench_of()
    tokens = {"x": 1}
    bench.enqueue("x", identity="x", expected_tokens=1)
    for n in range(40):
        tokens[f"s{n}"], tokens[f"l{n}"] = 10, 40
        bench.enqueue(f"l{n}", identity="large", expected_tokens=40)
        bench.enqueue(f"s{n}", identity="small", expected_tokens=10)

    order = drained(bench, "x", {name: count - 3 for name, count in tokens.items()})[1:41]

    small = sum(job_id.startswith("s") for job_id in order)
    assert small == pytest.approx(32, abs=2)


def test_without_the_gate_it_is_plain_arrival_order() -> None:
    """Whoever they are and whatever they take."""
    bench = bench_of(token_fairness=False)
    names = [f"{'ab'[n % 5 == 0]}{n}" for n in range(30)]
    for name in names:
        bench.enqueue(name, identity=name[0], expected_tokens=50 if name[0] == "a" else 1)

    assert drained(bench, names[0], dict.fromkeys(names, 9)) == names


@pytest.mark.parametrize("busy", [True, False])
def test_an_identity_that_was_idle_does_not_save_up(busy: bool) -> None:
    """Alice was served for long; Bob comes, and from then on they take turns.

    Also where nobody waited when he came: then he starts at the counter of who was placed last.
    """
    bench = bench_of()
    if busy:
        bench.enqueue(*(f"old{n}" for n in range(30)), identity="alice", expected_tokens=10)
        for n in range(20):
            ended(bench, f"old{n}", 10)
        running = "old20"
    else:
        for n in range(20):
            bench.enqueue(f"old{n}", identity="alice", expected_tokens=10)
            ended(bench, f"old{n}", 10)
        bench.enqueue("first", identity="alice", expected_tokens=10)
        running = "first"
    for n in range(6):
        bench.enqueue(f"bob{n}", identity="bob", expected_tokens=10)
        bench.enqueue(f"alice{n}", identity="alice", expected_tokens=10)

    order = []
    for _ in range(6):
        (running,) = ended(bench, running, 10)
        order.append("bob" if running.startswith("bob") else "alice")

    assert order.count("bob") == pytest.approx(3, abs=1)


def served(bench: Bench, identity: str) -> float:
    """The counter of an identity."""
    return bench.state.served[identity]


def test_what_was_counted_is_what_it_took_in_the_end() -> None:
    """The expectation when it is placed, the engine's count when it ends, not both."""
    bench = bench_of()
    bench.enqueue("a", identity="alice", expected_tokens=10)
    assert served(bench, "alice") == OUTPUT_WEIGHT * 10

    ended(bench, "a", 30)

    assert served(bench, "alice") == PROMPT_TOKENS + OUTPUT_WEIGHT * 30


def test_a_job_that_pools_refuse_is_counted_once() -> None:
    """However often it was placed."""
    bench = bench_of()
    bench.enqueue("a", identity="alice", expected_tokens=10)
    for number in (1, 2, 3):
        bench.step(AttemptRefused("a", number, "busy"))
        bench.at(bench.now_ms + 20_000)

    assert bench.state.jobs["a"].attempts_made == 4
    assert served(bench, "alice") == OUTPUT_WEIGHT * 10
    ended(bench, "a", 3, attempt=4)
    assert served(bench, "alice") == PROMPT_TOKENS + OUTPUT_WEIGHT * 3


def test_a_job_that_was_never_durable_counts_for_nothing() -> None:
    """A failed commit takes back what its placement was charged."""
    bench = bench_of()
    bench.enqueue("a", identity="alice")
    assert served(bench, "alice") > 0.0

    bench.step(AcceptsFailed(("a",)))

    assert served(bench, "alice") == 0.0


def test_a_cancelled_job_counts_for_what_it_took_until_then() -> None:
    """The engine says so after the job is over."""
    bench = bench_of()
    bench.enqueue("a", identity="alice", expected_tokens=1_000)
    bench.step(CancelRequested("a", 0))
    assert served(bench, "alice") == OUTPUT_WEIGHT * 1_000

    ended(bench, "a", 2)

    assert served(bench, "alice") == PROMPT_TOKENS + OUTPUT_WEIGHT * 2


# --- classes


def turns_taken(bench: Bench, jobs: int) -> list[str]:
    """Lets both classes wait and ends one job after the other; the class of each placement."""
    bench.enqueue("x", expected_tokens=1)
    for n in range(jobs):
        bench.enqueue(f"b{n}", batch=True)
        bench.enqueue(f"i{n}")
    order, running = [], "x"
    while bench.state.queue.depth(Priority.INTERACTIVE) and bench.state.queue.depth(Priority.BATCH):
        (running,) = ended(bench, running, 2)
        order.append(running[0])
    return order


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (2, 3), (3, 2), (5, 1), (7, 4)])
def test_class_weights_are_kept_exactly(weights: tuple[int, int]) -> None:
    """While both wait, every whole turn has the stated number of placements of each class.

    At every prefix neither class is more than one placement from its share.
    """
    interactive, batch = weights
    whole = interactive + batch

    order = turns_taken(bench_of(class_weights=weights, token_fairness=False), 60)[: 8 * whole]

    assert len(order) == 8 * whole
    for start in range(0, len(order) - whole + 1, whole):
        assert order[start : start + whole].count("b") == batch
    for length, count in enumerate(accumulate(kind == "b" for kind in order), 1):
        assert abs(count - length * batch / whole) <= 1.0


@pytest.mark.parametrize("batch_every", [1, 3, 8])
def test_batch_is_placed_after_so_many_interactive_ones(batch_every: int) -> None:
    """LO-103: exactly then while both wait, so the bound is kept and not undercut either."""
    order = turns_taken(bench_of(batch_every=batch_every, token_fairness=False), 50)

    turn = ["i"] * batch_every + ["b"]
    assert len(order) > 3 * len(turn)
    assert order == (turn * len(order))[: len(order)]


@pytest.mark.parametrize("slots", [1, 4])
def test_a_turn_that_was_taken_is_paid_for(slots: int) -> None:
    """Several slots that come free in one step do not change who gets them."""
    bench = bench_of(slots=slots, class_weights=(2, 1), token_fairness=False)
    bench.enqueue(*(f"x{n}" for n in range(slots)))
    for n in range(40):
        bench.enqueue(f"b{n}", batch=True)
        bench.enqueue(f"i{n}")
    order: list[str] = []

    for wave in range(5):
        more = bench.register(wide(f"new{wave}", 6, host_id=f"g{wave}"), host=f"g{wave}")
        order += [job_id[0] for job_id in placed(more)]

    assert "".join(order) == "iib" * 10


def test_turns_that_batch_could_not_use_are_not_saved_up() -> None:
    """A batch job that waits for another model's pool gives later ones no lead over INTERACTIVE."""
    bench = bench_of(batch_every=2, token_fairness=False)
    bench.register(wide("other", 1, host_id="g", model_id="n"), host="g")
    bench.enqueue("busy", model="n")
    bench.enqueue("kept out", model="n", batch=True)
    for n in range(50):
        bench.enqueue(f"x{n}")
        ended(bench, f"x{n}", 2)

    order = turns_taken(bench, 10)

    assert "".join(order[:9]) == "biibiibii"
