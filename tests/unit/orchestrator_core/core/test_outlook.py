"""What a lane expects of its pools, against a naive reading of the same rules. LO-202, LO-206."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from orchestrator_core.core.outlook import (
    DRAIN_MAX,
    FASTER_BY,
    IDLE_MARGIN,
    PASS_MARGIN,
    RENEW_AFTER,
    TIER_WIDTH,
    Advice,
    Outlook,
    Tier,
    Traffic,
    ending_per_ms,
    expected_service_ms,
    outlook,
    weigh,
)
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.prediction import ModelStats
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import Shape
from tests.unit.orchestrator_core.core.build import pool
from tests.unit.orchestrator_core.core.settings import STEADY

MEAN = Shape(200.0, 100.0)
STATS = ModelStats(prompt_tokens=MEAN.prompt_tokens, output_tokens=MEAN.output_tokens)
EMPTY = Outlook((), 0.0, 0, 0, 0)
SHAPES = st.builds(Shape, st.floats(0, 2_000), st.floats(1, 500))
TRAFFIC = st.builds(Traffic, st.integers(0, 60), st.floats(0.0, 0.02))


def timed(pool_id: str, token_ms: float, slots: int = 1, first_ms: float = 0.0) -> Pool:
    """A ready pool on which a token of output takes so long, and one of the prompt a tenth."""
    made = pool(pool_id, slots_total=slots, slots_free=slots)
    made.first_base_ms, made.prompt_token_ms, made.full_token_ms = first_ms, token_ms / 10, token_ms
    return made


def view_of(*pools: Pool) -> Outlook:
    """The outlook on these pools."""
    return outlook(pools, STATS, 0, 0)


def service_ms(one: Pool, shape: Shape) -> float:
    """From start to end of a job on a pool whose slots are all taken."""
    output = one.full_token_ms * shape.output_tokens
    return one.first_base_ms + one.prompt_token_ms * shape.prompt_tokens + output


@st.composite
def fleets(draw: st.DrawFn) -> list[Pool]:
    """Up to seven pools whose speeds are far apart, close together and in between."""
    speeds = draw(st.lists(st.floats(1.0, 80.0), min_size=1, max_size=7))
    return [timed(f"p{n}", token_ms, draw(st.integers(1, 4))) for n, token_ms in enumerate(speeds)]


@STEADY
@given(fleets(), st.randoms(use_true_random=False))
def test_every_pool_is_in_the_tier_of_its_speed(fleet: list[Pool], rng: object) -> None:
    """Tiers hold all slots, the fastest first, and the order in which pools come is nothing."""
    shuffled = list(fleet)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]

    view = view_of(*fleet)

    assert view == view_of(*shuffled)
    groups: list[list[Pool]] = []
    for one in sorted(fleet, key=lambda p: service_ms(p, MEAN)):
        if groups and service_ms(one, MEAN) <= TIER_WIDTH * service_ms(groups[-1][0], MEAN):
            groups[-1].append(one)
        else:
            groups.append([one])
    assert [tier.slots for tier in view.tiers] == [
        sum(one.snapshot.slots_total for one in group) for group in groups
    ]
    for tier, group in zip(view.tiers, groups, strict=True):
        rates = [one.snapshot.slots_total / service_ms(one, MEAN) for one in group]
        assert tier.jobs_per_ms == pytest.approx(sum(rates))
        # Weighted by how many jobs each ends: the mean over the jobs, not over the pools.
        weighted = [r * service_ms(one, MEAN) for r, one in zip(rates, group, strict=True)]
        assert tier.mean_ms == pytest.approx(sum(weighted) / sum(rates))
        assert tier.service_ms(MEAN) == pytest.approx(tier.mean_ms)
    assert view.jobs_per_ms == pytest.approx(sum(tier.jobs_per_ms for tier in view.tiers))
    assert view.pools == len(fleet)


def test_pools_that_cannot_serve_are_no_outlook() -> None:
    """Not those that are away, not those that are not ready, not those without slots."""
    away, starting, empty = timed("a", 1.0), timed("b", 1.0), timed("c", 1.0, slots=0)
    away.connected = False
    starting.snapshot = replace(starting.snapshot, state=PoolState.STARTING)

    assert view_of(away, starting, empty).tiers == ()
    assert [tier.slots for tier in view_of(away, empty, timed("d", 9.0, slots=3)).tiers] == [3]


@pytest.mark.parametrize(("pools", "enough"), [(1, RENEW_AFTER), (100, 50)])
def test_an_outlook_is_made_anew_when_the_fleet_changes_or_much_was_learned(
    pools: int, enough: int
) -> None:
    """The more pools there are, the less a single observation says."""
    view = replace(EMPTY, learned=7, fleet=3, pools=pools)

    assert view.due(7, 4)
    assert view.due(7 + enough, 3)
    assert not view.due(7 + enough - 1, 3)


# --- weighing offers


def naive(
    view: Outlook, traffic: Traffic, shape: Shape, tier: Tier, here_ms: int, ahead: int
) -> tuple[Advice, float, float]:
    """The two questions of the module, word by word; also returns both costs."""
    faster: list[Tier] = []
    for each in view.tiers:
        if each.service_ms(shape) * FASTER_BY >= here_ms:
            break
        faster.append(each)
    if not faster:
        return Advice.TAKE, 0.0, 0.0
    whole = sum(each.jobs_per_ms for each in view.tiers)
    drains_per_ms = max(whole / DRAIN_MAX, whole - traffic.arrivals_per_ms)
    price_ms = max(0, traffic.waiting - 1) / drains_per_ms
    here_cost = here_ms + price_ms * tier.service_ms(shape) / tier.mean_ms
    elsewhere_costs, left_idle = [], False
    for count in range(1, len(faster) + 1):
        used = faster[:count]
        rate = sum(each.jobs_per_ms for each in used)
        service = sum(each.jobs_per_ms * each.service_ms(shape) for each in used) / rate
        size = sum(e.jobs_per_ms * e.service_ms(shape) / e.mean_ms for e in used) / rate
        elsewhere_costs.append((ahead + 1) / rate + service + price_ms * size)
        if rate > traffic.arrivals_per_ms:
            until_empty_ms = traffic.waiting / (rate - traffic.arrivals_per_ms)
            sooner_ms = (until_empty_ms * size + service) * (1.0 + IDLE_MARGIN)
            left_idle = left_idle or sooner_ms < here_ms
    elsewhere_cost = min(elsewhere_costs)
    if left_idle:
        return Advice.LEAVE_IDLE, here_cost, elsewhere_cost
    if here_cost > elsewhere_cost * (1.0 + PASS_MARGIN):
        return Advice.PASS_ON, here_cost, elsewhere_cost
    return Advice.TAKE, here_cost, elsewhere_cost


@settings(STEADY, max_examples=600)
@given(fleets(), TRAFFIC, SHAPES, st.integers(0, 6), st.integers(0, 20), st.floats(0.3, 1.2))
def test_offers_are_weighed_as_the_naive_model_weighs_them(
    fleet: list[Pool], traffic: Traffic, shape: Shape, which: int, ahead: int, share: float
) -> None:
    """The same advice, the same end elsewhere and the same loss, for any slot of any fleet."""
    view, offered = view_of(*fleet), fleet[which % len(fleet)]
    tier = min(view.tiers, key=lambda t: abs(t.token_ms - offered.full_token_ms))
    # The tier stands for the pool, as it does for the mean job.
    offered = replace(offered, first_base_ms=tier.first_ms, prompt_token_ms=tier.prompt_token_ms)
    offered.full_token_ms = tier.token_ms
    here_ms = int(service_ms(offered, shape) * share)

    told = weigh(view, traffic, shape, offered, here_ms, ahead)

    advice, here_cost, elsewhere_cost = naive(view, traffic, shape, tier, here_ms, ahead)
    nearly_equal = here_cost == pytest.approx(elsewhere_cost * (1.0 + PASS_MARGIN), rel=1e-6)
    assume(advice is Advice.LEAVE_IDLE or not nearly_equal)
    assert told.advice is advice
    if advice is not Advice.TAKE:
        assert told.loss == pytest.approx(here_cost - elsewhere_cost, rel=1e-6, abs=1e-3)
        assert 0.0 < told.elsewhere_ms <= elsewhere_cost * (1 + 1e-9)


@settings(STEADY, max_examples=300)
@given(fleets(), TRAFFIC, SHAPES, st.integers(0, 20), st.integers(0, 60), st.floats(0.0, 0.02))
def test_more_to_do_never_makes_idling_better(
    fleet: list[Pool], quiet: Traffic, shape: Shape, ahead: int, more: int, faster: float
) -> None:
    """Neither a longer queue nor more arrivals turn a slot that is used into an idle one."""
    view, offered = view_of(*fleet), max(fleet, key=lambda p: p.full_token_ms)
    here_ms = int(service_ms(offered, shape))
    busier = Traffic(quiet.waiting + more, quiet.arrivals_per_ms + faster)

    before = weigh(view, quiet, shape, offered, here_ms, ahead).advice
    after = weigh(view, busier, shape, offered, here_ms, ahead).advice

    assert before is Advice.LEAVE_IDLE or after is not Advice.LEAVE_IDLE


@settings(STEADY, max_examples=300)
@given(fleets(), TRAFFIC, SHAPES, st.integers(0, 20), st.integers(0, 30_000), st.integers(1, 20))
def test_later_ends_never_make_a_slot_more_attractive(
    fleet: list[Pool], traffic: Traffic, shape: Shape, ahead: int, later: int, further: int
) -> None:
    """Who takes a slot takes one that ends sooner, also when more jobs are before it elsewhere."""
    view, offered = view_of(*fleet), max(fleet, key=lambda p: p.full_token_ms)
    here_ms = int(service_ms(offered, shape))

    slow = weigh(view, traffic, shape, offered, here_ms + later, ahead).advice
    quick = weigh(view, traffic, shape, offered, here_ms, ahead + further).advice

    assert slow is not Advice.TAKE or quick is Advice.TAKE


@STEADY
@given(st.integers(1, 6), TRAFFIC, SHAPES, st.integers(0, 20))
def test_where_all_pools_are_alike_every_offer_is_taken(
    count: int, traffic: Traffic, shape: Shape, ahead: int
) -> None:
    """There is nothing to wait for; nor is there where nothing is known of the pools."""
    fleet = [timed(f"p{n}", 20.0, slots=2) for n in range(count)]
    here_ms = int(service_ms(fleet[0], shape))

    assert weigh(view_of(*fleet), traffic, shape, fleet[0], here_ms, ahead).advice is Advice.TAKE
    assert weigh(EMPTY, traffic, shape, fleet[0], here_ms, ahead).advice is Advice.TAKE


@pytest.mark.parametrize(
    ("waiting", "arrivals_per_s", "ahead", "advice"),
    [
        (1, 0.0, 0, Advice.LEAVE_IDLE),
        (2, 0.0, 1, Advice.LEAVE_IDLE),
        (3, 0.0, 0, Advice.PASS_ON),
        (3, 0.0, 1, Advice.PASS_ON),
        (3, 0.0, 2, Advice.TAKE),
        # With half of the fast pool taken by arrivals its queue is empty in twice the time.
        (1, 0.5, 0, Advice.LEAVE_IDLE),
        (2, 0.5, 0, Advice.PASS_ON),
        # The fast pool alone cannot serve what comes.
        (1, 1.0, 0, Advice.PASS_ON),
        (9, 2.0, 9, Advice.TAKE),
    ],
)
def test_a_pool_of_a_quarter_of_the_speed(
    waiting: int, arrivals_per_s: float, ahead: int, advice: Advice
) -> None:
    """Worked by hand: a second on the fast slot, four on the slow one, all jobs alike."""
    fast, slow = timed("fast", 10.0), timed("slow", 40.0)
    for one in (fast, slow):
        one.prompt_token_ms = 0.0
    traffic = Traffic(waiting, arrivals_per_s / 1000.0)

    told = weigh(view_of(fast, slow), traffic, MEAN, slow, 4_000, ahead)

    assert told.advice is advice
    if advice is not Advice.TAKE:
        assert told.elsewhere_ms == pytest.approx((ahead + 1) * 1_000 + 1_000)


# --- rates


@settings(STEADY, max_examples=300)
@given(fleets(), TRAFFIC, SHAPES, st.integers(0, 50))
def test_a_line_moves_with_the_pools_that_it_is_long_enough_for(
    fleet: list[Pool], traffic: Traffic, shape: Shape, more: int
) -> None:
    """From the fastest tier down, until waiting for those so far is better than a slow slot."""
    view = view_of(*fleet)

    rates = [sum(t.slots / max(1.0, t.service_ms(shape)) for t in view.tiers[:1])]
    for count in range(1, len(view.tiers)):
        spare = rates[-1] - traffic.arrivals_per_ms
        slow_ms = max(1.0, view.tiers[count].service_ms(shape))
        if spare > 0 and traffic.waiting / spare * (1.0 + IDLE_MARGIN) < slow_ms:
            break
        rates.append(rates[-1] + view.tiers[count].slots / slow_ms)

    told = ending_per_ms(view, traffic, shape)

    assert told == pytest.approx(rates[-1])
    longer = Traffic(traffic.waiting + more, traffic.arrivals_per_ms)
    assert ending_per_ms(view, longer, shape) >= told
    saturated = Traffic(0, 1e9)
    assert ending_per_ms(view, saturated, shape) == pytest.approx(
        sum(t.slots / max(1.0, t.service_ms(shape)) for t in view.tiers)
    )


@STEADY
@given(fleets(), SHAPES)
def test_the_expected_service_is_the_mean_over_jobs(fleet: list[Pool], shape: Shape) -> None:
    """A tier counts by how many jobs it ends, so the slow ones count little."""
    view = view_of(*fleet)

    shares = [tier.jobs_per_ms / view.jobs_per_ms for tier in view.tiers]
    mean = sum(s * t.service_ms(shape) for s, t in zip(shares, view.tiers, strict=True))

    assert expected_service_ms(view, shape) == pytest.approx(mean)
    assert expected_service_ms(EMPTY, shape) == 0.0
    assert ending_per_ms(EMPTY, Traffic(3, 0.1), shape) == 0.0
