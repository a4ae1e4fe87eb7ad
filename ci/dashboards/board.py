"""What a dashboard is, without Grafana's many words."""

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """How a panel draws its queries."""

    LINES = "lines"
    """Over time."""
    AREAS = "areas"
    """Over time, on top of one another: for what adds up."""
    NUMBER = "number"
    """The present value, large."""
    BARS = "bars"
    """Present values side by side."""
    STATES = "states"
    """What was so when, one band per series; drawn where the value is 1."""


@dataclass(frozen=True, slots=True)
class Query:
    """An expression in PromQL and the legend of its series, with labels in double braces."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `unit` is Grafana's; `width` counts columns of 24.

    `warn` and `bad` colour a number or bar yellow and red from these values on.
    """

    title: str
    about: str
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    unit: str = "short"
    width: int = 8
    lowest: float | None = 0.0
    highest: float | None = None
    warn: float | None = None
    bad: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. Its `name` is that of its file. `pools`: it can be narrowed to some."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]
    pools: bool = True
