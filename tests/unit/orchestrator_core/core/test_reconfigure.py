"""Settings that change while jobs wait and run. HME-003."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.catalog_model import ModelCard
from orchestrator_core.core.config import (
    CoreConfig,
    Guardrails,
    Limits,
    Price,
    QueuePolicy,
    SessionBudgets,
    ThrottleConfig,
)
from orchestrator_core.core.effects import (
    Effect,
    JobEnded,
    ModelRefused,
    ReplyAccepted,
    ReplyModel,
    ReplyRefused,
    SendStart,
)
from orchestrator_core.core.events import CancelRequested, ConfigChanged, Event, ModelPut
from orchestrator_core.core.gates import JUDGED_MIN
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.records import SessionForgotten
from orchestrator_core.core.spec import Budgets
from orchestrator_core.core.states import JobState
from orchestrator_core.core.throttle import MS_PER_MINUTE, Bucket
from tests.unit.orchestrator_core.core.bench import Bench, learned, only, wide
from tests.unit.orchestrator_core.core.build import snapshot
from tests.unit.orchestrator_core.core.settings import STEADY
from tests.unit.orchestrator_core.core.world import World
from tests.unit.orchestrator_core.core.world_settings import OTHER, config_of

# What these decide takes more experience than a world gathers, or a catalog; see below.
ELSEWHERE = {"deadline_aware", "min_on_time_probability"}
ELSEWHERE |= {"catalog_strict_digest", "catalog_models_max"}

# Worlds in which every setting above has something to say.
SEEDS = (2, 4, 12)


def base(key: str, seed: int) -> CoreConfig:
    """The settings of a world; where something has to be opened to see a setting, it is."""
    config = replace(config_of(seed), queue_policy=QueuePolicy.REJECT)
    if key == "guardrails":
        config = replace(config, session_budgets=SessionBudgets(cost_micros=100))
    return config


def answers(core: Core, inputs: list[tuple[Event, int]]) -> str:
    """Everything that a core says to some inputs."""
    return repr([core.step(event, now_ms) for event, now_ms in inputs])


def test_every_setting_of_the_core_is_in_the_table() -> None:
    """A new setting cannot be forgotten here."""
    assert OTHER.keys() == {field.name for field in fields(CoreConfig)}


@pytest.mark.parametrize("key", sorted(OTHER.keys() - ELSEWHERE))
def test_a_core_that_was_told_goes_on_as_one_that_began_so(key: str) -> None:
    """For each setting: the change is seen in what is decided, and it is the whole change."""
    seen = False
    for seed in SEEDS:
        before = base(key, seed)
        after = replace(before, **{key: OTHER[key]})
        world = World(seed, before, memory=seed % 2 == 0)
        world.crash = lambda: None  # type: ignore[method-assign] # one core, from its beginning
        world.run(400)
        told = Core(before)
        assert told.step(ConfigChanged(after), 1) == []

        now = answers(told, world.inputs)

        assert now == answers(Core(after), world.inputs)
        seen = seen or now != repr(world.outputs)
    assert seen, f"no world of this test shows what {key} does"


def test_the_gate_of_deadlines_opens_with_what_was_learned_before() -> None:
    """LO-105: a job that would hardly be in time; before, after, and with another least chance."""
    bench = Bench(snapshot(), stale_after_ms=1_000_000_000)
    learned(bench, JUDGED_MIN)
    bench.enqueue("running", "waiting")
    assert only(bench.enqueue("a", deadline_ms=bench.now_ms + 10), ReplyAccepted)

    change(bench, deadline_aware=True)
    (first,) = only(bench.enqueue("b", deadline_ms=bench.now_ms + 10), ReplyRefused)
    change(bench, min_on_time_probability=0.75)
    (second,) = only(bench.enqueue("b", deadline_ms=bench.now_ms + 10), ReplyRefused)

    assert "0.10 is asked for" in first.refusal.message
    assert "0.75 is asked for" in second.refusal.message


def test_the_bounds_of_the_catalog_count_for_what_comes_after() -> None:
    """Models that are there stay; jobs must then be served by the digest that is known."""
    bench = Bench(snapshot(model_digest=""))
    put = [bench.step(ModelPut(ModelCard(name, digest="sha256:1"), 0, 0)) for name in ("m", "n")]
    assert all(only(effects, ReplyModel) for effects in put)
    assert only(bench.enqueue("a"), ReplyAccepted)

    change(bench, catalog_models_max=1, catalog_strict_digest=True)

    refused = bench.step(ModelPut(ModelCard("o"), 0, 0))
    (told,) = only(refused, ModelRefused)
    assert told.refusal.policy_label == "catalog"
    (reply,) = only(bench.enqueue("b"), ReplyRefused)
    assert reply.refusal.reason is Reason.INCOMPATIBLE_MODEL
    assert len(bench.state.catalog.entries) == 2


def change(bench: Bench, **changed: Any) -> list[Effect]:
    """An operator changes some settings."""
    return bench.step(ConfigChanged(replace(bench.core.config, **changed)))


def test_no_waiting_job_is_lost_where_there_are_fewer_places_than_jobs() -> None:
    """LO-101, LO-301: who waits keeps its place; nobody new gets in before there is room again."""
    bench = Bench(wide(slots=1), queue_capacity=5)
    bench.enqueue("runs", "a", "b", "c")

    effects = change(bench, queue_capacity=2)
    refused = bench.enqueue("d")

    assert effects == []
    assert bench.core.queue_depth() == 3
    assert only(refused, ReplyRefused)
    bench.step(CancelRequested("a", 0))
    assert only(bench.enqueue("e"), ReplyRefused), "two of two places are taken"
    bench.step(CancelRequested("b", 0))
    assert only(bench.enqueue("f"), ReplyAccepted)
    assert bench.core.queue_depth() == 2


@pytest.mark.parametrize("policy", [QueuePolicy.DROP_LRU, QueuePolicy.SHED_LOW_PRIORITY])
def test_a_queue_above_its_bound_does_not_grow(policy: QueuePolicy) -> None:
    """LO-101, LO-102: a newcomer that displaces somebody takes one place for one."""
    bench = Bench(wide(slots=1), queue_capacity=5)
    bench.enqueue("runs", "a", "b", "c", batch=True)

    change(bench, queue_capacity=1, queue_policy=policy)
    effects = bench.enqueue("d")

    (dropped,) = only(effects, JobEnded)
    assert dropped.state is JobState.DROPPED
    assert bench.core.queue_depth() == 3


@pytest.mark.parametrize(
    ("key", "before_ms", "after_ms", "state"),
    [
        ("queue_timeout_ms", 10_000, 4_000, JobState.EXPIRED),
        ("queue_timeout_ms", 4_000, 10_000, JobState.EXPIRED),
        ("wall_timeout_ms", 10_000, 4_000, JobState.EXPIRED),
        ("wall_timeout_ms", 4_000, 10_000, JobState.EXPIRED),
        ("idle_timeout_ms", 10_000, 4_000, JobState.EXPIRED),
        ("idle_timeout_ms", 4_000, 10_000, JobState.EXPIRED),
        ("disconnect_grace_ms", 10_000, 4_000, JobState.CANCELLED),
        ("disconnect_grace_ms", 4_000, 10_000, JobState.CANCELLED),
    ],
)
def test_a_wait_that_has_begun_ends_when_the_new_setting_says(
    key: str, before_ms: int, after_ms: int, state: JobState
) -> None:
    """Counted from where it began, not from the change. OC-CORE-1022, LO-303."""
    waits = key == "queue_timeout_ms"
    bench = Bench(*([] if waits else [wide(slots=1)]), **{key: before_ms})
    if waits:
        bench.register(snapshot(slots_total=1, slots_free=0))
    bench.enqueue("job", cancel_on_disconnect=key == "disconnect_grace_ms")
    bench.at(1_000)

    change(bench, **{key: after_ms})

    assert not only(bench.at(after_ms - 1), JobEnded)
    (ended,) = only(bench.at(after_ms), JobEnded)
    assert (ended.job_id, ended.state) == ("job", state)


def test_a_wait_that_is_over_by_the_new_setting_ends_at_once() -> None:
    """A shorter timeout than has passed already counts as passed."""
    bench = Bench(wide(slots=1), wall_timeout_ms=60_000)
    bench.enqueue("job")
    bench.at(5_000)

    (ended,) = only(change(bench, wall_timeout_ms=2_000), JobEnded)

    assert ended.state is JobState.EXPIRED


def test_a_timeout_of_the_jobs_own_stays() -> None:
    """What a client asked for is its own affair."""
    bench = Bench(queue_timeout_ms=60_000)
    bench.register(snapshot(slots_total=1, slots_free=0))
    bench.enqueue("job", queue_timeout_ms=30_000)

    change(bench, queue_timeout_ms=1_000)

    assert not only(bench.at(29_999), JobEnded)
    assert only(bench.at(30_000), JobEnded)


def test_ended_jobs_beyond_a_lower_bound_are_forgotten_the_oldest_first() -> None:
    """LO-302: retention ends for what is too much."""
    bench = Bench(wide(slots=1), finished_jobs_max=10)
    bench.enqueue("a", "b", "c", "d")
    for at_ms, name in enumerate("bcda", start=1):
        bench.now_ms = at_ms
        bench.end(name) if name == "a" else bench.step(CancelRequested(name, 0))

    change(bench, finished_jobs_max=2)

    assert list(bench.core.jobs) == ["a", "d"]


def test_sessions_beyond_a_lower_bound_are_forgotten_the_oldest_first() -> None:
    """And those of jobs that have not ended stay."""
    bench = Bench(wide(slots=4))
    for name in ("one", "two", "three"):
        bench.enqueue(f"job-{name}", session_id=name)
        if name != "one":
            bench.step(CancelRequested(f"job-{name}", 0))
            bench.end(f"job-{name}")
        bench.at(bench.now_ms + 1)

    effects = change(bench, sessions_max=1)

    assert {gone.session_id for gone in only(effects, SessionForgotten)} == {"two", "three"}
    assert [session.session_id for session in bench.core.sessions] == ["one"]


def test_who_waited_for_a_stale_pool_gets_it_when_it_is_young_enough_again() -> None:
    """A change is a reason to look at every pool, and to offer its slots."""
    bench = Bench(wide(slots=1), stale_after_ms=1_000)
    bench.enqueue("runs")
    bench.at(5_000)
    bench.enqueue("waits")
    bench.end("runs")
    assert not bench.core.holds_slot("waits", 1), "its pool is stale"

    effects = change(bench, stale_after_ms=60_000)

    assert [start.spec.job_id for start in only(effects, SendStart)] == ["waits"]


@STEADY
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 90), st.integers(0, 90_000))
def test_a_bucket_of_another_size_keeps_what_was_taken(
    before: int, after: int, taken: int, passed_ms: int
) -> None:
    """ORCH-3006: nobody gets units twice, and nobody waits for longer than filling it takes."""
    bucket = Bucket(before, 0)
    bucket.take(min(taken, before), 0)
    bucket._refill(passed_ms)
    used = before * MS_PER_MINUTE - bucket._level

    other = bucket.resized(after, passed_ms)

    assert other._level == max(after * MS_PER_MINUTE - used, 0)
    assert other.wait_ms(after, passed_ms) <= MS_PER_MINUTE


def test_a_client_that_had_no_limit_gets_one_and_loses_it_again() -> None:
    """Limits appear and go without a restart, for single clients too."""
    bench = Bench(wide(slots=9))
    bench.enqueue("a", identity="alice")

    one = ThrottleConfig(identities={"alice": Limits(requests_per_min=1)})
    change(bench, throttle=one)
    first, second = bench.enqueue("b", identity="alice"), bench.enqueue("c", identity="alice")
    others = bench.enqueue("d", identity="bob")
    change(bench, throttle=ThrottleConfig())
    again = bench.enqueue("e", identity="alice")

    assert only(first, ReplyAccepted)
    assert only(second, ReplyRefused)
    assert only(others, ReplyAccepted)
    assert only(again, ReplyAccepted)
    assert not len(bench.state.throttle)


def test_prices_count_for_jobs_that_come_after() -> None:
    """A job with a budget of cost is refused while its model has no price. ORCH-3099."""
    bench = Bench(wide(slots=9))
    costly = {"max_tokens": 10, "budgets": Budgets(cost_micros=1_000_000)}
    assert only(bench.enqueue("a", **costly), ReplyRefused)

    change(bench, guardrails=Guardrails(price=Price(1, 1)))

    assert only(bench.enqueue("b", **costly), ReplyAccepted)


def test_fairness_between_clients_can_begin_and_end_while_jobs_wait() -> None:
    """LO-104: who was served less goes first from then on, and by arrival after it."""
    bench = Bench(wide(slots=1))
    bench.enqueue("runs", "a1", "a2", "a3", identity="alice")
    bench.enqueue("b1", "b2", identity="bob")

    change(bench, token_fairness=True)
    order, running = [], "runs"
    for _ in range(3):
        (start,) = only(bench.end(running), SendStart)
        running = start.spec.job_id
        order.append(running)
    change(bench, token_fairness=False)
    (last,) = only(bench.end(running), SendStart)

    assert order == ["b1", "a1", "b2"]
    assert last.spec.job_id == "a2"
    assert not bench.state.served
