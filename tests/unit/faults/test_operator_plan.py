"""What operators of fault seeds are going to do: few acts, all kinds, in an order that tells."""

import random

from faults.simulation.operator_plan import _OF_MODELS, Act, Deed, deeds

SEEDS = range(300)
POOLS = ("p1", "p2")
SPAN_MS = 5_000


def _of(seed: int) -> tuple[Deed, ...]:
    return deeds(random.Random(seed), SPAN_MS, POOLS)  # noqa: S311 - a seed


def test_half_of_the_seeds_have_an_operator_with_few_acts() -> None:
    """And every kind of act is there among them."""
    plans = [plan for plan in map(_of, SEEDS) if plan]

    assert len(SEEDS) * 0.4 < len(plans) < len(SEEDS) * 0.6
    assert max(map(len, plans)) == 6
    assert {deed.act for plan in plans for deed in plan} == set(Act)


def test_acts_are_in_order_within_the_span_each_with_a_name() -> None:
    """The name is what tells one act from another in a history."""
    for plan in map(_of, SEEDS):
        times = [deed.at_ms for deed in plan]
        assert times == sorted(times)
        assert all(0 <= at_ms < SPAN_MS for at_ms in times)
        assert len({deed.name for deed in plan}) == len(plan)


def test_the_first_act_on_models_registers_one() -> None:
    """Nothing can be retired or deleted before."""
    firsts = [
        next((deed.act for deed in plan if deed.act in _OF_MODELS | {Act.REGISTER}), None)
        for plan in map(_of, SEEDS)
    ]

    assert set(firsts) == {Act.REGISTER, None}


def test_a_seed_is_one_plan() -> None:
    """The same each time."""
    assert [_of(seed) for seed in SEEDS] == [_of(seed) for seed in SEEDS]
