"""What jobs take, learned from what they took. LO-206.

Two straight lines per pool, fitted to finished jobs with forgetting: milliseconds to the first
token over uncached prompt tokens, and milliseconds per output token over the number of streams
that share the engine. What has not been measured yet comes from the snapshot, and what the
snapshot does not say from a stated prior, so a missing number never excludes a pool and is never
NaN. Output lengths are learned per model, by the size of the prompt. docs/prediction.md explains
the numbers.
"""

from collections import deque
from dataclasses import dataclass, field

from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.rates import PoolRates
from orchestrator_core.core.residuals import Residuals
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import BATCH, INTERACTIVE, JobSpec, Priority, Shape

# Prior: what a model is expected to write before any of its jobs has finished.
PRIOR_OUTPUT_TOKENS = 256.0
# English text in common tokenizers has about four bytes to the token.
PRIOR_BYTES_PER_TOKEN = 4.0
# Prompt of the job that stands for all others while none has finished.
PRIOR_PROMPT_TOKENS = 512.0
# Share of a warm session's prompt that is taken to be cached when its length is not known.
WARM_PRIOR_SHARE = 0.5
# Longer inputs and outputs than any engine takes; keeps every product finite.
TOKENS_MAX = 1e9

ALPHA = 0.2
# Means over the model's jobs follow the last fifty or so.
MEAN_ALPHA = 0.02
LENGTH_ALPHA = 0.03
# A bucket of prompt sizes speaks for itself after this many jobs.
BUCKET_JOBS_MIN = 5
MODELS_MAX = 1024
ARRIVALS_KEPT = 128
ARRIVALS_MIN = 8


@plain_init
@dataclass(frozen=True, slots=True)
class Observation:
    """What one finished attempt took. None where it is not known.

    `concurrency` is the mean number of streams that shared the engine while it decoded,
    `uncached_tokens` what it had to read of its prompt by the orchestrator's estimate,
    `perf_scale` that of the pool: times count as they would have been at full clocks.
    """

    model_id: str
    concurrency: float
    prompt_bytes: int
    uncached_tokens: float
    tokens_in: int | None
    tokens_out: int | None
    first_token_ms: int | None
    decode_ms: int | None
    perf_scale: float = 1.0


@dataclass(slots=True)
class Length:
    """Running mean of output tokens over jobs with prompts of one size."""

    mean: float = PRIOR_OUTPUT_TOKENS
    jobs: int = 0


@dataclass(slots=True)
class ModelStats:
    """What is known of a model's jobs, whichever pool served them.

    `lengths` is by the number of binary digits of the prompt's tokens; `arrivals` holds the last
    instants of accepts per class.
    """

    bytes_per_token: float = PRIOR_BYTES_PER_TOKEN
    prompt_tokens: float = PRIOR_PROMPT_TOKENS
    output_tokens: float = PRIOR_OUTPUT_TOKENS
    finished: int = 0
    lengths: dict[int, Length] = field(default_factory=dict)
    arrivals: dict[Priority, deque[int]] = field(
        default_factory=lambda: {p: deque(maxlen=ARRIVALS_KEPT) for p in Priority}
    )

    def arrivals_per_ms(self, priority: Priority, now_ms: int) -> float:
        """Recent rate of accepts in one class; 0 while there were too few to tell."""
        kept = self.arrivals[priority]
        if len(kept) < ARRIVALS_MIN:
            return 0.0
        return (len(kept) - 1) / max(1, now_ms - kept[0])

    def demand_per_ms(self, now_ms: int) -> float:
        """Recent rate of accepts of both classes."""
        interactive = self.arrivals_per_ms(INTERACTIVE, now_ms)
        return interactive + self.arrivals_per_ms(BATCH, now_ms)


NO_STATS = ModelStats()


@dataclass(slots=True)
class Predictor:
    """Everything learned. Bounded: one `PoolRates` per registered pool, `MODELS_MAX` models.

    `learned` counts observations and changed reports: who caches something derived from rates
    looks at it.
    """

    rates: dict[str, PoolRates] = field(default_factory=dict)
    models: dict[str, ModelStats] = field(default_factory=dict)
    residuals: Residuals = field(default_factory=Residuals)
    learned: int = 0

    def model(self, model_id: str) -> ModelStats:
        """What is known of a model; beyond the bound the one met first is forgotten."""
        known = self.models.get(model_id)
        if known is None:
            if len(self.models) >= MODELS_MAX:
                del self.models[next(iter(self.models))]
            known = self.models[model_id] = ModelStats()
        return known

    def known_model(self, model_id: str) -> ModelStats:
        """What is known of a model, to be read; the priors when nothing is."""
        return self.models.get(model_id, NO_STATS)

    def shape(self, spec: JobSpec) -> Shape:
        """Expected prompt and output of a job: its hint, else what its model's jobs produced.

        Jobs of one model differ by the length of their prompts, so outputs are remembered by
        that. O(1).
        """
        stats = self.known_model(spec.needs.model_id)
        prompt = spec.prompt_bytes / stats.bytes_per_token
        if prompt > TOKENS_MAX:
            prompt = TOKENS_MAX
        output = stats.output_tokens
        if spec.expected_tokens:
            output = float(spec.expected_tokens)
        else:
            known = stats.lengths.get(int(prompt).bit_length())
            if known is not None and known.jobs >= BUCKET_JOBS_MIN:
                output = known.mean
        if spec.max_tokens is not None and output > spec.max_tokens:
            output = float(spec.max_tokens)
        return Shape(prompt, output if output < TOKENS_MAX else TOKENS_MAX)

    def pool_rates(self, snapshot: PoolSnapshot) -> PoolRates:
        """The learned lines of a pool; made from its snapshot when it is new or serves anew."""
        known = self.rates.get(snapshot.pool_id)
        serves = (snapshot.model_id, snapshot.model_digest, snapshot.engine)
        if known is None or known.serves != serves:
            known = self.rates[snapshot.pool_id] = PoolRates(serves)
        if known.seed(snapshot):
            self.learned += 1
        return known

    def observe(self, rates: PoolRates, seen: Observation) -> None:
        """Learns from one finished attempt."""
        self.learned += 1
        if seen.tokens_out and seen.tokens_out > 1 and seen.decode_ms:
            token_ms = seen.perf_scale * seen.decode_ms / (seen.tokens_out - 1)
            rates.learn_decode(seen.concurrency, token_ms)
        if seen.first_token_ms is not None:
            rates.learn_first(seen.uncached_tokens, seen.perf_scale * seen.first_token_ms)
        rates.solve()
        stats = self.model(seen.model_id)
        if seen.tokens_in and seen.prompt_bytes:
            ratio = seen.prompt_bytes / seen.tokens_in
            weight = ALPHA if stats.finished else 1.0
            stats.bytes_per_token += weight * (ratio - stats.bytes_per_token)
        if seen.tokens_out:
            _learn_length(stats, seen)

    def forget_pool(self, pool_id: str) -> None:
        """Drops what was learned about a pool that is gone."""
        self.rates.pop(pool_id, None)


def _learn_length(stats: ModelStats, seen: Observation) -> None:
    tokens_out = float(seen.tokens_out or 0)
    stats.finished += 1
    weight = max(MEAN_ALPHA, 1.0 / stats.finished)
    stats.output_tokens += weight * (tokens_out - stats.output_tokens)
    prompt = min(seen.prompt_bytes / stats.bytes_per_token, TOKENS_MAX)
    stats.prompt_tokens += weight * (prompt - stats.prompt_tokens)
    length = stats.lengths.setdefault(int(prompt).bit_length(), Length())
    length.jobs += 1
    length.mean += max(LENGTH_ALPHA, 1.0 / length.jobs) * (tokens_out - length.mean)
