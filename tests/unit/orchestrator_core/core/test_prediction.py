"""Predictions are numbers, whatever a pool reports, and follow what jobs took. LO-206."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.prediction import BUCKET_JOBS_MIN, Observation, Predictor
from orchestrator_core.core.rates import PoolRates
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec
from tests.unit.orchestrator_core.core.build import MODEL, snapshot, spec
from tests.unit.orchestrator_core.core.settings import STEADY

RATES = st.one_of(st.none(), st.floats())
COUNTS = st.one_of(st.none(), st.integers(0, 10**9))


def seen(**fields: object) -> Observation:
    """One finished attempt of ten tokens in a second."""
    defaults = {
        "model_id": MODEL,
        "concurrency": 1.0,
        "prompt_bytes": 40,
        "uncached_tokens": 10.0,
        "tokens_in": 10,
        "tokens_out": 11,
        "first_token_ms": 100,
        "decode_ms": 1_000,
    }
    return Observation(**{**defaults, **fields})  # type: ignore[arg-type]


LEARNED = st.builds(
    seen,
    concurrency=st.floats(1, 100),
    prompt_bytes=st.integers(0, 10**9),
    uncached_tokens=st.floats(0, 1e9),
    tokens_in=COUNTS,
    tokens_out=COUNTS,
    first_token_ms=COUNTS,
    decode_ms=COUNTS,
    perf_scale=st.floats(0.01, 1),
)
POOLS = st.builds(
    snapshot,
    slots_total=st.integers(-1, 64),
    perf_tokens_per_s=RATES,
    prefill_tokens_per_s=RATES,
    first_token_ms=st.one_of(st.none(), st.integers(-5, 10**6)),
)
SPECS = st.builds(
    spec, expected_tokens=COUNTS, max_tokens=COUNTS, prompt_bytes=st.integers(0, 10**12)
)


def rates_of(pool: PoolSnapshot) -> PoolRates:
    """The lines of a pool of which nothing is known but its snapshot."""
    return Predictor().pool_rates(pool)


@STEADY
@given(pool=POOLS, asked=SPECS, concurrency=st.integers(0, 100), learned=st.lists(LEARNED))
def test_an_estimate_is_never_negative_nor_nan(
    pool: PoolSnapshot, asked: JobSpec, concurrency: int, learned: list[Observation]
) -> None:
    """Not for absent, zero, negative, infinite or undefined rates, learned or reported."""
    predictor = Predictor()
    rates = predictor.pool_rates(pool)
    for observation in learned:
        predictor.observe(rates, observation)

    shape = predictor.shape(asked)
    numbers = (
        shape.prompt_tokens,
        shape.output_tokens,
        rates.first.base,
        rates.first.slope,
        rates.decode.base,
        rates.decode.slope,
    )

    assert all(0.0 <= number < 1e12 for number in numbers), numbers
    assert 0.0 < rates.token_ms(concurrency) < 1e9


def test_a_missing_rate_gets_the_prior_and_more_streams_are_slower() -> None:
    """An unknown pool is neither excluded nor preferred."""
    unknown = rates_of(snapshot(slots_total=4))
    prior = rates_of(snapshot(slots_total=4, perf_tokens_per_s=20.0, first_token_ms=200))

    assert unknown.token_ms(1) == pytest.approx(50.0)
    assert unknown.token_ms(4) == pytest.approx(65.0)
    assert prior.token_ms(3) == pytest.approx(unknown.token_ms(3))
    assert unknown.first.base == pytest.approx(200.0)
    assert unknown.first.slope == pytest.approx(2.0)


@pytest.mark.parametrize("seed", range(5))
def test_both_lines_of_a_pool_are_found_from_its_jobs(seed: int) -> None:
    """Whatever was reported: after two hundred jobs every number is within a tenth of the truth."""
    rng = random.Random(seed)  # noqa: S311 - a test case, not a secret
    alone_ms, slope_ms = rng.uniform(5, 80), rng.uniform(0.5, 8)
    base_ms, token_ms = rng.uniform(10, 300), rng.uniform(0.05, 3)
    predictor = Predictor()
    rates = predictor.pool_rates(snapshot(slots_total=8, perf_tokens_per_s=rng.uniform(5, 200)))

    for _ in range(200):
        streams, prompt = rng.uniform(1, 8), rng.uniform(10, 4_000)
        tokens = rng.randint(20, 500)
        took_ms = (tokens - 1) * (alone_ms + slope_ms * (streams - 1)) * rng.uniform(0.97, 1.03)
        first_ms = (base_ms + token_ms * prompt) * rng.uniform(0.97, 1.03)
        observation = seen(
            concurrency=streams,
            uncached_tokens=prompt,
            tokens_out=tokens,
            decode_ms=round(took_ms),
            first_token_ms=round(first_ms),
        )
        predictor.observe(rates, observation)

    for streams in (1, 4, 8):
        assert rates.token_ms(streams) == pytest.approx(
            alone_ms + slope_ms * (streams - 1), rel=0.1
        )
    for prompt in (500, 4_000):
        predicted = rates.first.base + rates.first.slope * prompt
        assert predicted == pytest.approx(base_ms + token_ms * prompt, rel=0.1)


def test_what_is_seen_at_lowered_clocks_is_learned_as_at_full_ones() -> None:
    """The factor is applied to what was learned: it must not be learned as well. ORCH-3040."""
    full, lowered = Predictor(), Predictor()
    reported = snapshot(slots_total=8)
    for streams, prompt in ((1, 100), (4, 2_000), (8, 700)):
        at_full = {"concurrency": streams, "uncached_tokens": prompt, "tokens_out": 101}
        took = seen(**at_full, decode_ms=4_000, first_token_ms=300)
        full.observe(full.pool_rates(reported), took)
        slow = seen(**at_full, decode_ms=8_000, first_token_ms=600, perf_scale=0.5)
        lowered.observe(lowered.pool_rates(reported), slow)

    assert full.pool_rates(reported) == lowered.pool_rates(reported)


def test_outputs_are_remembered_by_the_size_of_the_prompt() -> None:
    """Short questions with long answers and long documents with short ones are told apart."""
    predictor = Predictor()
    rates = predictor.pool_rates(snapshot())

    for _ in range(20):
        predictor.observe(rates, seen(prompt_bytes=400, tokens_in=100, tokens_out=300))
        predictor.observe(rates, seen(prompt_bytes=40_000, tokens_in=10_000, tokens_out=30))

    assert predictor.shape(spec(prompt_bytes=400)).output_tokens == pytest.approx(300)
    assert predictor.shape(spec(prompt_bytes=40_000)).output_tokens == pytest.approx(30)
    unknown = predictor.shape(spec(prompt_bytes=4)).output_tokens
    assert 30 < unknown < 300


def test_a_hint_goes_before_what_was_learned_and_the_limit_before_both() -> None:
    """`expected_tokens`, else the model's jobs, at most `max_tokens`."""
    predictor = Predictor()
    rates = predictor.pool_rates(snapshot())
    for _ in range(BUCKET_JOBS_MIN):
        predictor.observe(rates, seen(tokens_out=50))

    def output(**fields: object) -> float:
        return predictor.shape(spec(prompt_bytes=40, **fields)).output_tokens

    assert output() == pytest.approx(50)
    assert output(expected_tokens=7) == 7
    assert output(max_tokens=20) == 20
    assert output(expected_tokens=30, max_tokens=20) == 20


def test_a_pool_that_serves_another_model_begins_anew() -> None:
    """What was learned belongs to the model, not to the name of the pool."""
    predictor = Predictor()
    rates = predictor.pool_rates(snapshot(perf_tokens_per_s=10.0))
    for _ in range(50):
        predictor.observe(rates, seen())

    assert predictor.pool_rates(snapshot(perf_tokens_per_s=10.0)) is rates
    other = predictor.pool_rates(snapshot(perf_tokens_per_s=10.0, model_id="n"))
    assert other.token_ms(1) == pytest.approx(100.0)
    predictor.forget_pool("p")
    assert not predictor.rates
