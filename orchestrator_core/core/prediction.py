"""When a job will start and end, learned from what jobs took. LO-206.

Decode rate falls with concurrency; what has not been measured yet comes from the snapshot, and what
the snapshot does not say from a stated prior, so a missing number never excludes a pool and is
never NaN.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import dataclass, field

from orchestrator_core.core.job import JobSpec
from orchestrator_core.core.pool import PoolSnapshot

# Priors: a small model on a mid-range card. They only matter until the first job has finished.
PRIOR_TOKENS_PER_S = 20.0
PRIOR_PREFILL_TOKENS_PER_S = 500.0
PRIOR_FIRST_TOKEN_MS = 200.0
PRIOR_OUTPUT_TOKENS = 256.0
# English text in common tokenizers has about four bytes to the token.
PRIOR_BYTES_PER_TOKEN = 4.0
# Decode is bound by memory bandwidth: each further stream slows the others by about a tenth.
PRIOR_SLOWDOWN_PER_STREAM = 0.1

# A longer prediction tells nobody anything: about thirty years.
LONGEST_MS = 1e12

ALPHA = 0.2
RESIDUALS_KEPT = 256
MODELS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted milliseconds to the first token and from there to the end."""

    first_token_ms: int
    decode_ms: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What one finished attempt took. None where it is not known."""

    pool_id: str
    model_id: str
    concurrency: int
    prompt_bytes: int
    tokens_in: int | None
    tokens_out: int | None
    first_token_ms: int | None
    decode_ms: int | None


@dataclass(slots=True)
class PoolRates:
    """Learned numbers of one pool."""

    tokens_per_s: dict[int, float] = field(default_factory=dict)
    first_token_ms: float | None = None


def _blend(old: float | None, new: float) -> float:
    """Exponentially weighted mean; the first value counts in full."""
    return new if old is None else old + ALPHA * (new - old)


class Predictor:
    """Estimates per pool, model and concurrency.

    Bounded: one entry per registered pool and at most `MODELS_MAX` models.
    """

    __slots__ = ("_bytes_per_token", "_output", "_rates", "_residuals", "_sorted_residuals")
    _bytes_per_token: dict[str, float]
    _output: dict[str, float]
    _rates: dict[str, PoolRates]
    _residuals: deque[float]
    _sorted_residuals: list[float]

    def __init__(self) -> None:
        self._rates = {}
        self._output = {}
        self._bytes_per_token = {}
        self._residuals = deque()
        self._sorted_residuals = []

    def prompt_tokens(self, spec: JobSpec) -> float:
        """Expected prompt tokens, from the prompt's bytes."""
        per_token = self._bytes_per_token.get(spec.needs.model_id, PRIOR_BYTES_PER_TOKEN)
        return spec.prompt_bytes / per_token

    def output_tokens(self, spec: JobSpec) -> float:
        """Expected output: the job's hint, else the model's mean; at most `max_tokens`."""
        expected = float(
            spec.expected_tokens or self._output.get(spec.needs.model_id, PRIOR_OUTPUT_TOKENS)
        )
        return expected if spec.max_tokens is None else min(expected, float(spec.max_tokens))

    def tokens_per_s(self, pool: PoolSnapshot, concurrency: int) -> float:
        """Decode rate of one stream among `concurrency`."""
        rates = self._rates.get(pool.pool_id)
        if rates is not None and rates.tokens_per_s:
            learned = rates.tokens_per_s
            known = learned.get(concurrency)
            if known is not None:
                return known
            nearest = min(learned, key=lambda c: (abs(c - concurrency), c))
            return learned[nearest] * _slowdown(nearest) / _slowdown(concurrency)
        return _sound(pool.perf_tokens_per_s, PRIOR_TOKENS_PER_S) / _slowdown(concurrency)

    def estimate(self, spec: JobSpec, pool: PoolSnapshot, concurrency: int) -> Estimate:
        """Predicts one job on a pool that `concurrency` streams, this one included, would share."""
        rates = self._rates.get(pool.pool_id)
        first = rates.first_token_ms if rates else None
        if first is None:
            base = pool.first_token_ms
            first = PRIOR_FIRST_TOKEN_MS if base is None else float(base)
        prefill = _sound(pool.prefill_tokens_per_s, PRIOR_PREFILL_TOKENS_PER_S)
        rate = self.tokens_per_s(pool, concurrency)
        return Estimate(
            first_token_ms=_whole_ms(first + 1000.0 * self.prompt_tokens(spec) / prefill),
            decode_ms=_whole_ms(1000.0 * self.output_tokens(spec) / rate),
            tokens_per_s=rate,
        )

    def observe(self, seen: Observation) -> None:
        """Learns from one finished attempt."""
        rates = self._rates.setdefault(seen.pool_id, PoolRates())
        if seen.tokens_out and seen.tokens_out > 1 and seen.decode_ms:
            rate = 1000.0 * (seen.tokens_out - 1) / seen.decode_ms
            old = rates.tokens_per_s.get(seen.concurrency)
            rates.tokens_per_s[seen.concurrency] = _blend(old, rate)
        if seen.first_token_ms is not None:
            rates.first_token_ms = _blend(rates.first_token_ms, float(seen.first_token_ms))
        if seen.tokens_out:
            self._learn(self._output, seen.model_id, float(seen.tokens_out))
        if seen.tokens_in and seen.prompt_bytes:
            ratio = seen.prompt_bytes / seen.tokens_in
            self._learn(self._bytes_per_token, seen.model_id, ratio)

    def observe_residual(self, predicted_ms: int, actual_ms: int) -> None:
        """Remembers how far a predicted end was off, as the ratio of actual to predicted."""
        ratio = actual_ms / max(1, predicted_ms)
        self._residuals.append(ratio)
        insort(self._sorted_residuals, ratio)
        if len(self._residuals) > RESIDUALS_KEPT:
            oldest = self._residuals.popleft()
            self._sorted_residuals.pop(bisect_left(self._sorted_residuals, oldest))

    def on_time_probability(self, predicted_ms: int, left_ms: int) -> float:
        """Share of remembered residuals with which the job would end in `left_ms`."""
        if left_ms <= 0:
            return 0.0
        if not self._sorted_residuals:
            return 1.0 if predicted_ms <= left_ms else 0.0
        limit = left_ms / max(1, predicted_ms)
        met = bisect_right(self._sorted_residuals, limit)
        return met / len(self._sorted_residuals)

    def forget_pool(self, pool_id: str) -> None:
        """Drops what was learned about a pool that is gone."""
        self._rates.pop(pool_id, None)

    @staticmethod
    def _learn(table: dict[str, float], model_id: str, value: float) -> None:
        if model_id not in table and len(table) >= MODELS_MAX:
            del table[next(iter(table))]
        table[model_id] = _blend(table.get(model_id), value)


def _sound(rate: float | None, prior: float) -> float:
    """The reported rate, or the prior for one that is missing, not positive or not finite."""
    return rate if rate is not None and 0.0 < rate < float("inf") else prior


def _whole_ms(span_ms: float) -> int:
    return int(min(max(span_ms, 0.0), LONGEST_MS))


def _slowdown(concurrency: int) -> float:
    """Prior factor by which a stream is slower among `concurrency` than alone."""
    return 1.0 + PRIOR_SLOWDOWN_PER_STREAM * (max(1, concurrency) - 1)
