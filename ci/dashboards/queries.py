"""Expressions that panels share.

`$pool` is what the reader chose to look at, `$__rate_interval` Grafana's window for rates: four
scrapes at least.
"""

from typing import Final

from ci.dashboards.board import Query

POOL: Final = 'pool_id=~"$pool"'
"""The pools that the reader chose."""

DEVICE: Final = "{{host_id}} {{device}}"
"""Legend of a device: two hosts can have one of the same name."""
_SAME_POOL: Final = "on (job, instance, pool_id)"


def each_device(expression: str) -> str:
    """One series for each device of each host, which several pools may use."""
    return f"max by (host_id, device) ({expression})"


def of_host(metric: str) -> str:
    """A gauge of pools with the host of each."""
    # Beyond the budget of labels several pools are called `other`: their hosts are not known.
    return f'{metric} * {_SAME_POOL} group_left (host_id) pool_info{{pool_id!="other"}}'


def of_ready_pools(series: str) -> str:
    """Series of those pools that are ready: the slots of others serve nobody."""
    return f'{series} and {_SAME_POOL} pool_state{{state="ready"}} == 1'


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


def some(query: Query) -> Query:
    """Only what is not 0, of series of which most always are."""
    return Query(f"{query.expr} > 0", query.legend)
