"""How far predictions were off, so that of the jobs told 80 %, 80 % are on time. LO-206.

A residual is actual divided by predicted. Jobs that were given up at their deadline took longer
than was seen: they count as censored, by the product-limit estimator. Source: Kaplan and Meier,
"Nonparametric Estimation from Incomplete Observations", JASA 53 (1958).
"""

from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass, field

RESIDUALS_KEPT = 512
QUANTILES = 32
# The table of quantiles is made anew after so many residuals.
RENEW_EVERY = 16
# Fewer residuals than this are no evidence.
EVIDENCE_MIN = 8
# A ratio beyond this says only that the prediction was worthless.
RATIO_MAX = 1_000.0


@dataclass(slots=True)
class Window:
    """The last residuals of one kind and their quantiles.

    `kept` holds (ratio, censored) in order of arrival, `ranked` the same in order of size, with
    the censored of equal size last. `table` has `QUANTILES` values: the first is exceeded by all
    but half a 32nd of the jobs, and so on; what is not known for want of uncensored residuals is
    `RATIO_MAX`.
    """

    kept: deque[tuple[float, bool]] = field(default_factory=deque)
    ranked: list[tuple[float, bool]] = field(default_factory=list)
    table: list[float] = field(default_factory=list)
    censored: int = 0
    unseen: int = 0

    def add(self, ratio: float, *, censored: bool = False) -> None:
        """Remembers one residual; the oldest beyond `RESIDUALS_KEPT` goes. O(RESIDUALS_KEPT)."""
        if ratio < 0.0:
            ratio = 0.0
        entry = (ratio if ratio < RATIO_MAX else RATIO_MAX, censored)
        self.kept.append(entry)
        insort(self.ranked, entry)
        if len(self.kept) > RESIDUALS_KEPT:
            oldest = self.kept.popleft()
            self.censored -= oldest[1]
            del self.ranked[bisect_right(self.ranked, oldest) - 1]
        self.censored += censored
        self.unseen += 1
        if self.unseen >= RENEW_EVERY or len(self.kept) <= RENEW_EVERY:
            self.unseen = 0
            self.table = _quantiles(self.ranked, censored=self.censored > 0)

    def median(self) -> float:
        """The middle residual; 1 without evidence.

        Where so many were given up that nobody saw it, the greatest that was seen, and at least 1:
        a prediction stands until it is refuted.
        """
        if not self.evident:
            return 1.0
        return min(self.table[QUANTILES // 2], max(1.0, self.ranked[-1][0]))

    def median_above(self, ratio: float) -> float:
        """The middle of the residuals above `ratio`; beyond them all, a quarter more than it."""
        met, beyond = bisect_right(self.table, ratio), max(1.0, 1.25 * ratio)
        if met >= len(self.table):
            return beyond
        return min(self.table[(met + len(self.table)) // 2], max(self.ranked[-1][0], beyond))

    @property
    def evident(self) -> bool:
        """True when there are enough residuals to speak of probabilities."""
        return len(self.kept) >= EVIDENCE_MIN

    def share_below(self, ratio: float) -> float:
        """Probability that a residual is at most `ratio`, between 0 and 1."""
        return bisect_right(self.table, ratio) / QUANTILES


@dataclass(slots=True)
class Residuals:
    """Residuals of the start of jobs that waited, and of the time from start to end.

    Starts are compared with the plain forecast, before it is corrected by their own median: a
    correction that looked at corrected forecasts would swing, since what it did shows a whole
    queue later. The time from start to end is kept apart for jobs that were placed at once, whose
    pool was known when they were told, and for those that waited.
    """

    start: Window = field(default_factory=Window)
    service_at_once: Window = field(default_factory=Window)
    service_waited: Window = field(default_factory=Window)

    @property
    def judged(self) -> int:
        """Jobs whose time from start to end is remembered beside what was predicted."""
        return len(self.service_at_once.kept) + len(self.service_waited.kept)

    def service(self, *, waited: bool) -> Window:
        """The window of one kind of job."""
        return self.service_waited if waited else self.service_at_once

    def on_time_probability(
        self, start_ms: float, service_ms: float, left_ms: float, *, waited: bool
    ) -> float:
        """Probability that a plain start and a service, as predicted, end within `left_ms`.

        The two errors are taken to be independent: the mean over the quantiles of the start of
        the share of services that fit behind it. Without evidence it is 0 or 1. O(QUANTILES).
        """
        if left_ms <= 0:
            return 0.0
        services = self.service(waited=waited)
        if not services.evident:
            return 1.0 if start_ms + service_ms <= left_ms else 0.0
        service_ms = max(1.0, service_ms)
        if not waited or not self.start.evident:
            return services.share_below((left_ms - start_ms) / service_ms)
        total = 0.0
        for ratio in self.start.table:
            total += services.share_below((left_ms - start_ms * ratio) / service_ms)
        return total / QUANTILES

    def finish_probability(
        self, service_ms: float, elapsed_ms: float, left_ms: float, *, waited: bool
    ) -> float:
        """Probability that a job which has run for `elapsed_ms` ends within `left_ms` more."""
        if left_ms <= 0:
            return 0.0
        services = self.service(waited=waited)
        service_ms = max(1.0, service_ms)
        if not services.evident:
            return 1.0 if service_ms - elapsed_ms <= left_ms else 0.0
        past = services.share_below(elapsed_ms / service_ms)
        if past >= 1.0:
            return 0.5
        soon = services.share_below((elapsed_ms + left_ms) / service_ms)
        return (soon - past) / (1.0 - past)


def _quantiles(ranked: list[tuple[float, bool]], *, censored: bool) -> list[float]:
    """Values at (i + 1/2) / QUANTILES of the product-limit estimate."""
    if not censored:
        count = len(ranked)
        return [ranked[(2 * i + 1) * count // (2 * QUANTILES)][0] for i in range(QUANTILES)]
    table: list[float] = []
    at_risk, survival = len(ranked), 1.0
    for ratio, given_up in ranked:
        if not given_up:
            survival -= survival / at_risk
            while len(table) < QUANTILES and 1.0 - survival >= (len(table) + 0.5) / QUANTILES:
                table.append(ratio)
        at_risk -= 1
    return table + [RATIO_MAX] * (QUANTILES - len(table))
