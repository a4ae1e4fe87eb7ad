"""Expressions that panels share.

`$pool` is what the reader chose to look at, `$__rate_interval` Grafana's window for rates: four
scrapes at least.
"""

from typing import Final

from ci.dashboards.board import Query

POOL: Final = 'pool_id=~"$pool"'
"""The pools that the reader chose."""


def quantiles(metric: str, by: str = "", where: str = POOL) -> tuple[Query, ...]:
    """Median, 95th and 99th percentile of a histogram; `by` adds labels to split it by."""
    each = f"rate({metric}_bucket{{{where}}}[$__rate_interval])"
    legend = "".join(f" {{{{{label}}}}}" for label in by.split(", ") if label)
    labels = f"le, {by}" if by else "le"
    return tuple(
        Query(f"histogram_quantile({share}, sum by ({labels}) ({each}))", f"{name}{legend}")
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def p95(metric: str, by: str, where: str = POOL) -> Query:
    """95th percentile of a histogram, split by labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    each = f"rate({metric}_bucket{{{where}}}[$__rate_interval])"
    return Query(f"histogram_quantile(0.95, sum by (le, {by}) ({each}))", legend)


def rate(metric: str, by: str, where: str = POOL) -> Query:
    """What a counter grows by in a second, split by labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))", legend)
