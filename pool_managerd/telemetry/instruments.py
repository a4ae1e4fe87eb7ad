"""Counts and gauges as plain tables that exports read; distributions are OpenTelemetry's own.

Everything here belongs to the event loop, but for distributions, which any thread may record.
Exports see what `Board.freeze` took last, so that all counts of one export are of one instant.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from pool_managerd.telemetry.rows import BUDGETS, Kind, MetricRow

OTHER: Final = "other"
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


class Labels:
    """The labels of one metric: a bounded number of values each, later ones become `other`."""

    def __init__(self, row: MetricRow, limits: Mapping[str, int] = BUDGETS) -> None:
        self._limits = tuple(limits[label] for label in row.labels)
        self._seen: tuple[set[str], ...] = tuple(set() for _ in row.labels)

    def admit(self, values: Key) -> Key:
        """The values, each within its budget. One place is kept for `other`; empty costs none."""
        admitted = []
        for value, seen, limit in zip(values, self._seen, self._limits, strict=True):
            if value and value not in seen:
                if len(seen) >= limit - 1:
                    admitted.append(OTHER)
                    continue
                seen.add(value)
            admitted.append(value)
        return tuple(admitted)


class Table:
    """A counter or a gauge. Values that meet in one series are added up."""

    def __init__(self, board: Board, row: MetricRow) -> None:
        self._labels = Labels(row)
        self._values: dict[Key, float] = {}
        observe = board.add(row, self._values_now)
        make = (
            board.meter.create_observable_counter
            if row.kind is Kind.COUNTER
            else board.meter.create_observable_gauge
        )
        make(row.name, [observe], description=row.help)

    def add(self, amount: float, *values: str) -> None:
        """Adds to the series with these label values, in the order of the contract."""
        key = self._labels.admit(values)
        self._values[key] = self._values.get(key, 0) + amount

    def replace(self, values: Iterable[tuple[Key, float]]) -> None:
        """Takes over what is counted, or so, elsewhere."""
        self._values = {}
        for key, value in values:
            self.add(value, *key)

    def set(self, value: float) -> None:
        """The value of a metric without labels."""
        self._values = {(): value}

    def _values_now(self) -> Values:
        return self._values.copy()


class Histogram:
    """Distribution with the buckets of the contract."""

    def __init__(self, board: Board, row: MetricRow) -> None:
        self._names, self._labels = row.labels, Labels(row)
        self._instrument = board.meter.create_histogram(
            row.name,
            description=row.help,
            explicit_bucket_boundaries_advisory=[float(bound) for bound in row.buckets],
        )

    def record(self, amount: float, *values: str) -> None:
        """Records one observation with these label values, in the order of the contract."""
        key = self._labels.admit(values)
        self._instrument.record(amount, dict(zip(self._names, key, strict=True)))
