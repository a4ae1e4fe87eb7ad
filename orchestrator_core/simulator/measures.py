"""Numbers that sum up a run: percentiles, on-time share, prediction error, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator_core.simulator.results import JobLine, Run

BINS = 10
LONG_WAIT_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of a span, in milliseconds."""

    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def spread(spans_ms: Sequence[float]) -> Spread | None:
    """Sums up spans; None when there are none. Percentiles are nearest-rank."""
    if not spans_ms:
        return None
    ordered = sorted(spans_ms)
    p50, p95, p99 = (ordered[max(0, -(-len(ordered) * p // 100) - 1)] for p in (50, 95, 99))
    return Spread(sum(ordered) / len(ordered), p50, p95, p99)


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Jobs whose predicted probability fell into one tenth."""

    jobs: int
    mean_predicted: float
    on_time_share: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far predicted probabilities of being on time can be taken at their word.

    `ece` is the expected calibration error over ten bins of equal width, `brier_skill` the Brier
    score's gain over always saying the base rate; None when every job had the same fate.
    """

    jobs: int
    base_rate: float
    ece: float
    brier: float
    brier_skill: float | None
    bins: tuple[CalibrationBin, ...]


def calibration(pairs: Sequence[tuple[float, bool]]) -> Calibration | None:
    """Compares (probability, was on time) pairs; None without any."""
    if not pairs:
        return None
    count = len(pairs)
    base = sum(met for _, met in pairs) / count
    brier = sum((p - met) ** 2 for p, met in pairs) / count
    reference = base * (1.0 - base)
    bins = []
    for number in range(BINS):
        inside = [(p, met) for p, met in pairs if min(int(p * BINS), BINS - 1) == number]
        size = max(1, len(inside))
        predicted, share = sum(p for p, _ in inside) / size, sum(m for _, m in inside) / size
        bins.append(CalibrationBin(len(inside), predicted, share))
    ece = sum(b.jobs * abs(b.mean_predicted - b.on_time_share) for b in bins) / count
    skill = 1.0 - brier / reference if reference > 0 else None
    return Calibration(count, base, ece, brier, skill, tuple(bins))


@dataclass(frozen=True, slots=True)
class PredictionError:
    """How far off predictions were: the median of |predicted - actual| / actual, over `jobs`."""

    jobs: int
    median_relative: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that is reported of one run. Times in milliseconds, shares from 0 to 1.

    `on_time_share` is of the jobs with a deadline; None without any.
    """

    policy: str
    jobs: int
    finished: int
    completion: Spread | None
    first_token: Spread | None
    wait: Spread | None
    on_time_share: float | None
    utilisation: tuple[float, ...]
    start_error: PredictionError | None
    end_error: PredictionError | None
    calibration: Calibration | None


def summarise(run: Run, slots: Sequence[int], warm_up: float) -> Summary:
    """Sums up a run; what is about predictions leaves the first `warm_up` share of jobs out."""
    ended = [line for line in run.jobs if line.end_ms is not None]
    due = [line.on_time for line in run.jobs if line.deadline_ms is not None]
    counted = _counted(run, warm_up)
    return Summary(
        policy=run.policy,
        jobs=len(run.jobs),
        finished=len(ended),
        completion=_spread_since_arrival(run.jobs, "end_ms"),
        first_token=_spread_since_arrival(run.jobs, "first_ms"),
        wait=_spread_since_arrival(run.jobs, "start_ms"),
        on_time_share=sum(due) / len(due) if due else None,
        utilisation=tuple(
            busy_ms / (count * run.makespan_ms) if run.makespan_ms else 0.0
            for busy_ms, count in zip(run.busy_ms, slots, strict=True)
        ),
        start_error=median_error(start_errors(run, warm_up)),
        end_error=median_error(_errors(counted, "predicted_end_ms", "end_ms")),
        calibration=calibration(
            [
                (line.on_time_probability, line.on_time)
                for line in counted
                if line.on_time_probability is not None
            ]
        ),
    )


def start_errors(run: Run, warm_up: float) -> list[float]:
    """|predicted - actual| / actual of the start of each job that waited for over a second."""
    return _errors(_counted(run, warm_up), "predicted_start_ms", "start_ms")


def median_error(errors: Sequence[float]) -> PredictionError | None:
    """The middle of relative errors; None when there are none."""
    if not errors:
        return None
    ordered, middle = sorted(errors), len(errors) // 2
    median = ordered[middle]
    if len(errors) % 2 == 0:
        median = (ordered[middle - 1] + median) / 2
    return PredictionError(len(errors), median)


def _counted(run: Run, warm_up: float) -> list[JobLine]:
    return run.jobs[int(len(run.jobs) * warm_up) :]


def _spread_since_arrival(lines: Sequence[JobLine], instant: str) -> Spread | None:
    instants = ((getattr(line, instant), line.arrival_ms) for line in lines)
    return spread([at_ms - arrival_ms for at_ms, arrival_ms in instants if at_ms is not None])


def _errors(lines: Sequence[JobLine], predicted: str, actual: str) -> list[float]:
    """Looks at the jobs whose actual span was over a second: below it, any error is large."""
    errors = []
    for line in lines:
        guess, at_ms = getattr(line, predicted), getattr(line, actual)
        if guess is None or at_ms is None or at_ms - line.arrival_ms <= LONG_WAIT_MS:
            continue
        span_ms = at_ms - line.arrival_ms
        errors.append(abs(guess - span_ms) / span_ms)
    return errors
