"""Limits per client, against a model that recounts everything each time. ORCH-3006."""

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.config import Limits, ThrottleConfig
from orchestrator_core.core.throttle import MS_PER_MINUTE, Throttle
from tests.unit.orchestrator_core.core.settings import STEADY


@dataclass
class Ledger:
    """Everything that one client ever took, in order; a bucket is worked out from it anew."""

    per_min: int
    taken: list[tuple[int, int]] = field(default_factory=list)

    def level(self, at_ms: int) -> Fraction:
        """What is in the bucket at an instant, as an exact fraction."""
        level, before_ms = Fraction(self.per_min), 0
        for when_ms, units in self.taken:
            level = self._grown(level, when_ms - before_ms) - units
            level, before_ms = min(level, Fraction(self.per_min)), when_ms
        return self._grown(level, at_ms - before_ms)

    def _grown(self, level: Fraction, passed_ms: int) -> Fraction:
        return min(
            level + Fraction(self.per_min * passed_ms, MS_PER_MINUTE), Fraction(self.per_min)
        )

    def admits(self, units: int, at_ms: int) -> bool:
        """There is enough for the units, or the bucket is full."""
        return self.level(at_ms) >= min(units, self.per_min)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("ask", "ask", "give back", "settle")),
        st.integers(0, 20_000),
        st.integers(0, 90),
    ),
    max_size=60,
)


@STEADY
@given(STEPS, st.integers(1, 9), st.integers(1, 50))
def test_the_buckets_agree_with_a_full_recount(
    steps: list[tuple[str, int, int]], requests_per_min: int, tokens_per_min: int
) -> None:
    """Who is let in, and the exact wait of who is not: a millisecond less is too early."""
    throttle = Throttle(ThrottleConfig(Limits(requests_per_min, tokens_per_min)))
    requests, tokens = Ledger(requests_per_min), Ledger(tokens_per_min)
    now_ms = 0
    for what, passed_ms, amount in steps:
        now_ms += passed_ms
        if what == "give back":
            throttle.charge("a", -1, -amount, now_ms)
            requests.taken.append((now_ms, -1))
            tokens.taken.append((now_ms, -amount))
        elif what == "settle":
            throttle.charge("a", 0, 30 - amount, now_ms)
            tokens.taken.append((now_ms, 30 - amount))
        else:
            refused = throttle.check("a", amount, now_ms)

            free = requests.admits(1, now_ms), tokens.admits(amount, now_ms)
            if refused is None:
                assert all(free)
                throttle.charge("a", 1, amount, now_ms)
                requests.taken.append((now_ms, 1))
                tokens.taken.append((now_ms, amount))
                continue
            assert not all(free)
            assert refused.wait_ms is not None
            then_ms = now_ms + refused.wait_ms
            assert requests.admits(1, then_ms)
            assert tokens.admits(amount, then_ms)
            early = requests.admits(1, then_ms - 1), tokens.admits(amount, then_ms - 1)
            assert early[refused.policy_label == "throttle-tokens"] is False


@STEADY
@given(st.lists(st.integers(0, 15_000), min_size=1, max_size=80), st.integers(1, 6))
def test_no_span_of_time_holds_more_than_its_share(gaps_ms: list[int], per_min: int) -> None:
    """In any span at most one bucket and what refills meanwhile is let in."""
    throttle = Throttle(ThrottleConfig(Limits(requests_per_min=per_min)))
    let_in, now_ms = [], 0
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        if throttle.check("a", 0, now_ms) is None:
            throttle.charge("a", 1, 0, now_ms)
            let_in.append(now_ms)

    for first, start_ms in enumerate(let_in):
        for last in range(first, len(let_in)):
            span_ms = let_in[last] - start_ms
            assert last - first + 1 <= per_min + per_min * span_ms // MS_PER_MINUTE


def test_nobody_is_limited_by_default() -> None:
    """Permissive until configured, and nothing is remembered of anybody."""
    throttle = Throttle(ThrottleConfig())

    for n in range(1_000):
        assert throttle.check(f"client {n % 7}", 10**9, 0) is None
        throttle.charge(f"client {n % 7}", 1, 10**9, 0)

    assert len(throttle) == 0


def test_a_job_larger_than_the_bucket_waits_for_a_full_one_and_leaves_a_debt() -> None:
    """No limit makes a job impossible, and the average holds all the same."""
    throttle = Throttle(ThrottleConfig(Limits(tokens_per_min=60)))
    throttle.charge("a", 1, 1, 0)

    refused = throttle.check("a", 600, 0)
    assert refused is not None
    assert refused.wait_ms == 1_000
    assert throttle.check("a", 600, 1_000) is None
    throttle.charge("a", 1, 600, 1_000)

    after = throttle.check("a", 1, 1_000)
    assert after is not None
    assert after.wait_ms == 541_000, "540 of debt and 1 to take, at one a second"


def test_clients_do_not_share_their_buckets() -> None:
    """What one client took is nothing to another, and a limit of its own goes over the default."""
    own = {"vip": Limits(requests_per_min=2)}
    throttle = Throttle(ThrottleConfig(Limits(requests_per_min=1), own))
    for identity in ("a", "vip"):
        throttle.charge(identity, 1, 0, 0)

    assert throttle.check("a", 0, 0) is not None
    assert throttle.check("b", 0, 0) is None
    assert throttle.check("vip", 0, 0) is None


def test_waiting_jobs_are_limited_and_leaving_makes_room() -> None:
    """The count follows the queue; no bucket can tell when somebody will leave."""
    throttle = Throttle(ThrottleConfig(Limits(queued_jobs=2)))
    throttle.entered("a")
    throttle.entered("a")

    refused = throttle.check("a", 0, 0)
    assert refused is not None
    assert (refused.policy_label, refused.limit, refused.wait_ms) == ("throttle-queued", 2, None)
    assert throttle.check("b", 0, 0) is None
    throttle.left("a")

    assert throttle.check("a", 0, 0) is None
    throttle.left("a")
    assert throttle.waiting("a") == 0


def test_the_idle_are_forgotten_before_those_in_debt() -> None:
    """A crowd of strangers does not wipe out what an older client owes."""
    throttle = Throttle(ThrottleConfig(Limits(requests_per_min=1), identities_max=2))
    throttle.charge("debtor", 5, 0, 0)
    throttle.charge("idle by then", 1, 0, 0)

    throttle.charge("stranger", 1, 0, 60_000)

    assert len(throttle) == 2
    assert throttle.check("debtor", 0, 60_000) is not None


def test_of_those_in_debt_the_least_recently_used_is_forgotten() -> None:
    """Whoever goes on asking is remembered."""
    throttle = Throttle(ThrottleConfig(Limits(requests_per_min=1), identities_max=2))
    throttle.charge("insistent", 5, 0, 0)
    throttle.charge("silent", 5, 0, 1)
    assert throttle.check("insistent", 0, 2) is not None

    throttle.charge("stranger", 1, 0, 3)

    assert throttle.check("insistent", 0, 4) is not None
    assert throttle.check("silent", 0, 5) is None


@STEADY
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30_000)), max_size=60))
def test_forgetting_never_keeps_anybody_out(asks: list[tuple[int, int]]) -> None:
    """Whom a throttle without bounds lets in is let in by a small one, asked the same."""
    limits = Limits(requests_per_min=2, tokens_per_min=40)
    small = Throttle(ThrottleConfig(limits, identities_max=2))
    large = Throttle(ThrottleConfig(limits))
    now_ms = 0
    for who, passed_ms in asks:
        now_ms += passed_ms
        name = f"client {who}"
        if large.check(name, 10, now_ms) is None:
            assert small.check(name, 10, now_ms) is None
            for throttle in (small, large):
                throttle.charge(name, 1, 10, now_ms)
        assert len(small) <= 2


@pytest.mark.parametrize("limits", [Limits(-1), Limits(0, -1), Limits(0, 0, -1)])
def test_a_negative_limit_is_refused(limits: Limits) -> None:
    """For everybody and for one client alike."""
    with pytest.raises(ValueError, match="negative"):
        ThrottleConfig(limits)
    with pytest.raises(ValueError, match="negative"):
        ThrottleConfig(identities={"a": limits})
    with pytest.raises(ValueError, match="identities_max"):
        ThrottleConfig(identities_max=0)
