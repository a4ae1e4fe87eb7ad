"""Scorers, alone and as the configuration chooses them. LO-202, ORCH-3012."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.config import Scorer
from orchestrator_core.core.records import DispatchRecord
from orchestrator_core.core.scores import SCORES
from tests.unit.orchestrator_core.core.bench import Bench, only, wide
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.core.settings import STEADY

ENDS = st.lists(st.integers(0, 10**7), min_size=1, max_size=8)
# A hundred tokens in one, two and four seconds.
SPEEDS = {"quick": 100.0, "middling": 50.0, "slow": 25.0}


def best_end_ms(scorer: Scorer, ends_ms: list[int], deadline_ms: int | None, now_ms: int) -> int:
    """The end of the candidate with the least score."""
    scores = SCORES[scorer](ends_ms, spec(deadline_ms=deadline_ms), now_ms)
    assert len(scores) == len(ends_ms)
    return ends_ms[scores.index(min(scores))]


@STEADY
@given(ENDS, st.integers(1, 10**7), st.integers(0, 10**6))
def test_the_latest_end_in_time_meets_the_target(
    ends_ms: list[int], left_ms: int, now_ms: int
) -> None:
    """The slowest pool within three quarters of the time left; the quickest where none is."""
    in_time = [end for end in ends_ms if end <= left_ms * 3 // 4]

    chosen = best_end_ms(Scorer.LATENCY_TARGET, ends_ms, now_ms + left_ms, now_ms)

    assert chosen == (max(in_time) if in_time else min(ends_ms))


@STEADY
@given(ENDS)
def test_without_a_deadline_the_soonest_end_is_best(ends_ms: list[int]) -> None:
    """There is no target to meet."""
    assert best_end_ms(Scorer.LATENCY_TARGET, ends_ms, None, 0) == min(ends_ms)
    assert best_end_ms(Scorer.PREDICTED_END, ends_ms, 1, 0) == min(ends_ms)


@STEADY
@given(ENDS)
def test_without_scoring_all_are_equal(ends_ms: list[int]) -> None:
    """ORCH-3012: what is left are the tie-breaks."""
    assert set(SCORES[Scorer.OFF](ends_ms, spec(), 0)) == {0}


def test_every_scorer_of_the_configuration_exists() -> None:
    """Adding one to the list without writing it is noticed here."""
    assert set(SCORES) == set(Scorer)


@pytest.mark.parametrize(
    ("config", "deadline_ms", "winner"),
    [
        ({}, 100_000, "quick"),
        ({"scorer": Scorer.LATENCY_TARGET}, 100_000, "slow"),
        ({"scorer": Scorer.LATENCY_TARGET}, 5_000, "middling"),
        ({"scorer": Scorer.LATENCY_TARGET}, 500, "quick"),
        ({"scorer": Scorer.LATENCY_TARGET}, None, "quick"),
        ({"scorer": Scorer.OFF}, 100_000, "slow"),
        ({"scorer": Scorer.LATENCY_TARGET, "performance_scoring": False}, 5_000, "slow"),
    ],
)
def test_the_configured_scorer_places(
    config: dict[str, object], deadline_ms: int | None, winner: str
) -> None:
    """With scoring off the pool with the most free slots takes it, whatever scorer is named."""
    pools = (
        wide(pool_id, 9 if pool_id == "slow" else 8, perf_tokens_per_s=speed, first_token_ms=0)
        for pool_id, speed in SPEEDS.items()
    )
    bench = Bench(*pools, decline_offers=False, **config)

    (record,) = only(
        bench.enqueue("a", expected_tokens=100, deadline_ms=deadline_ms), DispatchRecord
    )

    assert record.pool_id == winner
    assert record.decision.pool_id == winner
