"""Predictions are numbers, whatever a pool reports, and follow what jobs took. LO-206."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.job import JobSpec
from orchestrator_core.core.pool import PoolSnapshot
from orchestrator_core.core.prediction import RESIDUALS_KEPT, Observation, Predictor
from tests.unit.orchestrator_core.core.build import MODEL, snapshot, spec
from tests.unit.orchestrator_core.core.settings import STEADY

RATES = st.one_of(st.none(), st.floats())
COUNTS = st.one_of(st.none(), st.integers(0, 10**9))


def seen(**fields: object) -> Observation:
    """One finished attempt of ten tokens in a second."""
    defaults = {
        "pool_id": "p",
        "model_id": MODEL,
        "concurrency": 1,
        "prompt_bytes": 40,
        "tokens_in": 10,
        "tokens_out": 11,
        "first_token_ms": 100,
        "decode_ms": 1_000,
    }
    return Observation(**{**defaults, **fields})  # type: ignore[arg-type]


LEARNED = st.builds(
    seen,
    concurrency=st.integers(1, 4),
    prompt_bytes=st.integers(0, 10**9),
    tokens_in=COUNTS,
    tokens_out=COUNTS,
    first_token_ms=COUNTS,
    decode_ms=COUNTS,
)
POOLS = st.builds(
    snapshot,
    perf_tokens_per_s=RATES,
    prefill_tokens_per_s=RATES,
    first_token_ms=st.one_of(st.none(), st.integers(-5, 10**6)),
)
SPECS = st.builds(
    spec, expected_tokens=COUNTS, max_tokens=COUNTS, prompt_bytes=st.integers(0, 10**12)
)


@STEADY
@given(pool=POOLS, asked=SPECS, concurrency=st.integers(0, 100), learned=st.lists(LEARNED))
def test_an_estimate_is_never_negative_nor_nan(
    pool: PoolSnapshot, asked: JobSpec, concurrency: int, learned: list[Observation]
) -> None:
    """Not for absent, zero, negative, infinite or undefined rates, learned or reported."""
    predictor = Predictor()
    for observation in learned:
        predictor.observe(observation)

    estimate = predictor.estimate(asked, pool, concurrency)

    assert estimate.first_token_ms >= 0
    assert estimate.decode_ms >= 0
    assert estimate.tokens_per_s > 0


def test_a_missing_rate_gets_the_prior_and_more_streams_are_slower() -> None:
    """An unknown pool is neither excluded nor preferred."""
    predictor, asked = Predictor(), spec(expected_tokens=100)

    unknown = predictor.estimate(asked, snapshot(), 1)
    prior = predictor.estimate(asked, snapshot(perf_tokens_per_s=20.0, first_token_ms=200), 1)
    shared = predictor.estimate(asked, snapshot(), 4)

    assert unknown == prior
    assert shared.decode_ms > unknown.decode_ms


def test_what_was_measured_replaces_what_was_reported() -> None:
    """Rates are learned by concurrency, and from the nearest one where it was not measured."""
    predictor = Predictor()
    pool = snapshot(perf_tokens_per_s=1.0)

    predictor.observe(seen(concurrency=2))

    assert predictor.tokens_per_s(pool, 2) == 10.0
    assert predictor.tokens_per_s(pool, 1) == 10.0 * 1.1
    assert predictor.output_tokens(spec()) == 11.0
    assert predictor.prompt_tokens(spec(prompt_bytes=40)) == 10.0
    predictor.forget_pool("p")
    assert predictor.tokens_per_s(pool, 1) == 1.0


def test_the_share_of_jobs_on_time_is_the_probability() -> None:
    """Of four jobs with known errors, three were at most half over: that is the 75 %."""
    predictor = Predictor()
    assert predictor.on_time_probability(100, 99) == 0.0
    assert predictor.on_time_probability(100, 100) == 1.0

    for actual_ms in (80, 100, 150, 300):
        predictor.observe_residual(100, actual_ms)

    assert predictor.on_time_probability(1_000, 1_500) == 0.75
    assert predictor.on_time_probability(1_000, 0) == 0.0
    for _ in range(2 * RESIDUALS_KEPT):
        predictor.observe_residual(100, 100)
    assert predictor.on_time_probability(1_000, 1_000) == 1.0
    assert len(predictor._sorted_residuals) == RESIDUALS_KEPT
