"""The kinds of instruments behind the contract, each within its budget of label values.

What they hold belongs to the event loop. Exports, which read from other threads, see what
`Board.freeze` took last: all counts and gauges of one export are of one instant, so that they add
up. An observation is a few additions here; an OpenTelemetry histogram takes ten microseconds.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from orchestrator_core.telemetry.distributions import Distributions, Series
from orchestrator_core.telemetry.metric_row import BUDGETS, Kind, MetricRow

OTHER: Final = "other"
# Sets of label values of which it is remembered what became of them.
KNOWN_MAX: Final = 4_096
Key = tuple[str, ...]
Values = Mapping[Key, float]


class Board:
    """All counts and gauges of one process, and what exports see of them.

    The SDK makes one export at a time, and asks for it the instruments one after another in the
    order in which they were made: the first one's turn decides what all of them show.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._sources: dict[str, Callable[[], Values]] = {}
        self._frozen: Mapping[str, Values] = {}
        self._exported: Mapping[str, Values] = {}
        self.distributions = Distributions()

    def add(self, row: MetricRow, take: Callable[[], Values]) -> Callable[..., list[Observation]]:
        """Adds an instrument of which `take` gives the present values; returns its callback."""
        first = not self._sources
        self._sources[row.name] = take

        def observe(_: CallbackOptions) -> list[Observation]:
            if first:
                self._exported = self._frozen
            return [
                Observation(value, dict(zip(row.labels, key, strict=True)))
                for key, value in self._exported.get(row.name, {}).items()
            ]

        return observe

    def freeze(self) -> None:
        """Shows exports that begin from now on the present values. O(series)."""
        self._frozen = {name: take() for name, take in self._sources.items()}
        self.distributions.freeze()


class LabelBudget:
    """Lets a bounded number of values of each label through; later ones become `other`.

    Each metric has its own: the reasons of one do not use up the room of another.
    """

    def __init__(self, limits: Mapping[str, int] = BUDGETS) -> None:
        self._limits = limits
        self._seen: dict[str, set[str]] = {label: set() for label in limits}
        self._known: dict[Key, Key] = {}

    def admit(self, label: str, value: str) -> str:
        """The value itself while the budget lasts, else `other`."""
        seen = self._seen[label]
        if value in seen:
            return value
        # One place is kept for `other` itself, and the empty value costs none.
        if value and len(seen) >= self._limits[label] - 1:
            return OTHER
        if value:
            seen.add(value)
        return value

    def admit_all(self, labels: Key, values: Key) -> Key:
        """The values of several labels, each within its budget."""
        known = self._known.get(values)
        if known is None:
            known = tuple(map(self.admit, labels, values))
            # What was folded once stays folded, and what was let through stays.
            if len(self._known) < KNOWN_MAX:
                self._known[values] = known
        return known


class Counter:
    """Counts in a plain table that exports read: an increment costs no OpenTelemetry call.

    Mutable on purpose: this is on the path of every job.
    """

    def __init__(self, board: Board, row: MetricRow) -> None:
        assert row.kind is Kind.COUNTER
        self._labels, self._budget = row.labels, LabelBudget()
        self._values: dict[Key, float] = {}
        observe = board.add(row, self._take)
        board.meter.create_observable_counter(row.name, [observe], description=row.help)

    def add(self, amount: int, *values: str) -> None:
        """Adds to the series with these label values, in the order of the contract."""
        if values in self._values:
            self._values[values] += amount
            return
        key = self._budget.admit_all(self._labels, values)
        self._values[key] = self._values.get(key, 0) + amount

    def replace(self, values: Iterable[tuple[Key, float]]) -> None:
        """Takes over what is counted elsewhere."""
        counted: dict[Key, float] = {}
        for raw, value in values:
            key = self._budget.admit_all(self._labels, raw)
            counted[key] = counted.get(key, 0) + value
        self._values = counted

    def _take(self) -> Values:
        return self._values.copy()


class Histogram:
    """Distribution with the buckets of the contract. Mutable on purpose, as counters are."""

    def __init__(self, board: Board, row: MetricRow) -> None:
        assert row.kind is Kind.HISTOGRAM
        self._labels, self._budget = row.labels, LabelBudget()
        self._bounds = tuple(float(bound) for bound in row.buckets)
        self._series: dict[Key, Series] = {}
        self._known: dict[Key, Series] = {}
        board.distributions.add(row, self._bounds, self._series)

    def record(self, amount: float, *values: str) -> None:
        """Records one observation with these label values, in the order of the contract."""
        series = self._known.get(values) or self._find(values)
        series.counts[bisect_left(self._bounds, amount)] += 1
        series.total += amount
        series.lowest = min(series.lowest, amount)
        series.highest = max(series.highest, amount)

    def _find(self, values: Key) -> Series:
        key = self._budget.admit_all(self._labels, values)
        series = self._series.get(key)
        if series is None:
            attributes = dict(zip(self._labels, key, strict=True))
            series = self._series[key] = Series(attributes, [0] * (len(self._bounds) + 1))
        if len(self._known) < KNOWN_MAX:
            self._known[values] = series
        return series


class Gauge:
    """Shows what was sampled last. Series beyond the budget are folded into one."""

    def __init__(self, board: Board, row: MetricRow) -> None:
        assert row.kind is Kind.GAUGE
        self._labels, self._budget = row.labels, LabelBudget()
        self._values: Values = {}
        self._adds = not row.highest
        observe = board.add(row, lambda: self._values)
        board.meter.create_observable_gauge(row.name, [observe], description=row.help)

    def set(self, value: float | None) -> None:
        """The value of a gauge without labels; None hides it."""
        self.replace([] if value is None else [((), value)])

    def replace(self, values: Iterable[tuple[Key, float]]) -> None:
        """Takes new values over, all at once."""
        folded: dict[Key, float] = {}
        for raw, value in values:
            key = self._budget.admit_all(self._labels, raw)
            if key not in folded:
                folded[key] = value
            elif self._adds:
                folded[key] += value
            else:
                folded[key] = max(folded[key], value)
        self._values = folded
