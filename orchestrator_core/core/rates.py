"""The learned speed of one pool: two straight lines with forgetting. LO-206.

Why lines: prefill reads a prompt at a constant rate, and a decode step that serves k streams takes
a fixed part (reading the weights) and a part per stream. Source for the second: Agrawal et al.,
"Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI 2024, figure 5.
"""

from dataclasses import dataclass, field
from typing import Protocol

# Priors: a small model on a mid-range card. They only matter until the first jobs have finished.
PRIOR_TOKENS_PER_S = 20.0
PRIOR_PREFILL_TOKENS_PER_S = 500.0
PRIOR_FIRST_TOKEN_MS = 200.0
# Decode is bound by memory bandwidth: each further stream slows the others by about a tenth.
PRIOR_SLOWDOWN_PER_STREAM = 0.1
# A line's slope is told by its prior until the measured points lie this far apart.
PROMPT_REACH_TOKENS = 1_000.0

# A reported number counts as much as two jobs, a guessed one as half a job.
REPORTED_WEIGHT = 1.0
GUESSED_WEIGHT = 0.25
# Each job's weight falls by this factor with every later one: about fifty jobs count.
MEMORY = 0.98
# What is measured displaces the prior: after so many jobs it has half of its weight.
PRIOR_JOBS = 4.0
# Slower than any engine; keeps every number finite.
TOKEN_MS_MAX = 1e6
TOKEN_MS_MIN = 1e-6
RATE_MIN = 1e-6
FIRST_MS_MAX = 1e9


class Speed(Protocol):
    """What a host reports about the speed of a pool; None where it does not know."""

    @property
    def slots_total(self) -> int:
        """Slots of the pool."""
        ...

    @property
    def perf_tokens_per_s(self) -> float | None:
        """Decode rate of a single stream."""
        ...

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens read per second."""
        ...

    @property
    def first_token_ms(self) -> int | None:
        """Time to the first token of a short prompt."""
        ...


@dataclass(slots=True)
class Line:
    """y = base + slope * x, by weighted least squares over a prior and what was measured.

    The prior is two points of weight `prior_weight`, fading, at x = 0 and at x = `reach`. The sums
    hold measured points, each weighted by `MEMORY` to the power of its age. Neither number of the
    solution is negative.
    """

    reach: float
    prior_base: float = 0.0
    prior_slope: float = 0.0
    prior_weight: float = GUESSED_WEIGHT
    weight: float = 0.0
    sum_x: float = 0.0
    sum_y: float = 0.0
    sum_xx: float = 0.0
    sum_xy: float = 0.0
    base: float = 0.0
    slope: float = 0.0

    def learn(self, x: float, y: float) -> None:
        """Adds a measured point."""
        self.weight = self.weight * MEMORY + 1.0
        self.sum_x = self.sum_x * MEMORY + x
        self.sum_y = self.sum_y * MEMORY + y
        self.sum_xx = self.sum_xx * MEMORY + x * x
        self.sum_xy = self.sum_xy * MEMORY + x * y

    def solve(self) -> None:
        """Makes `base` and `slope` follow the points."""
        prior = self.prior_weight * PRIOR_JOBS / (PRIOR_JOBS + self.weight)
        reach = self.reach
        far_y = self.prior_base + self.prior_slope * reach
        weight = self.weight + 2.0 * prior
        mean_x = (self.sum_x + prior * reach) / weight
        mean_y = (self.sum_y + prior * (self.prior_base + far_y)) / weight
        spread = self.sum_xx + prior * reach * reach - weight * mean_x * mean_x
        joint = self.sum_xy + prior * reach * far_y - weight * mean_x * mean_y
        slope = joint / spread if spread > 0.0 else self.prior_slope
        slope = slope if slope > 0.0 else 0.0
        if mean_y < slope * mean_x:
            slope = mean_y / mean_x
        self.slope = slope
        base = mean_y - slope * mean_x
        self.base = base if base > 0.0 else 0.0


@dataclass(slots=True)
class PoolRates:
    """Lines of one pool: `first` over uncached prompt tokens, `decode` over further streams.

    `serves` names what they were learned for. Times in milliseconds: `first.base` for an empty
    prompt, `first.slope` per prompt token, `decode.base` per output token of a stream alone,
    `decode.slope` what each further stream adds to that.
    """

    serves: tuple[str, str, str]
    first: Line = field(default_factory=lambda: Line(PROMPT_REACH_TOKENS))
    decode: Line = field(default_factory=lambda: Line(1.0))
    seeded: tuple[int, float | None, float | None, int | None] | None = None

    def seed(self, reported: Speed) -> bool:
        """Takes the prior from what a host reports; what was measured stays. False: as before."""
        key = (
            reported.slots_total,
            reported.perf_tokens_per_s,
            reported.prefill_tokens_per_s,
            reported.first_token_ms,
        )
        if key == self.seeded:
            return False
        self.seeded = key
        rate, known = _sound(reported.perf_tokens_per_s, PRIOR_TOKENS_PER_S)
        token_ms = min(1000.0 / rate, TOKEN_MS_MAX)
        self.decode.reach = float(max(1, reported.slots_total - 1))
        self.decode.prior_base = token_ms
        self.decode.prior_slope = token_ms * PRIOR_SLOWDOWN_PER_STREAM
        self.decode.prior_weight = REPORTED_WEIGHT if known else GUESSED_WEIGHT
        prefill, prefill_known = _sound(reported.prefill_tokens_per_s, PRIOR_PREFILL_TOKENS_PER_S)
        first_ms = reported.first_token_ms
        base_ms = PRIOR_FIRST_TOKEN_MS if first_ms is None else float(max(0, first_ms))
        self.first.prior_base = min(base_ms, FIRST_MS_MAX)
        self.first.prior_slope = min(1000.0 / prefill, TOKEN_MS_MAX)
        self.first.prior_weight = REPORTED_WEIGHT if prefill_known else GUESSED_WEIGHT
        self.solve()
        return True

    def learn_decode(self, concurrency: float, token_ms: float) -> None:
        """Notes what an output token took among `concurrency` streams, this one included."""
        self.decode.learn(max(0.0, concurrency - 1.0), min(token_ms, TOKEN_MS_MAX))

    def learn_first(self, uncached_tokens: float, first_ms: float) -> None:
        """Notes what the first token of a prompt took."""
        self.first.learn(uncached_tokens, min(max(0.0, first_ms), FIRST_MS_MAX))

    def solve(self) -> None:
        """Makes both lines follow what was learned."""
        self.first.solve()
        self.decode.solve()

    def token_ms(self, concurrency: int) -> float:
        """Milliseconds per output token of one stream among `concurrency`; positive."""
        return max(TOKEN_MS_MIN, self.decode.base + self.decode.slope * max(0, concurrency - 1))


def _sound(rate: float | None, prior: float) -> tuple[float, bool]:
    """The reported rate and True, or the prior for one missing, not positive or not finite."""
    if rate is not None and RATE_MIN < rate < float("inf"):
        return rate, True
    return prior, False
