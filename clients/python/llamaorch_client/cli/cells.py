# SPDX-License-Identifier: Apache-2.0
"""How numbers and names stand in tables: the same in every command."""

from collections.abc import Sequence

GIB, MIB = 2**30, 2**20
# Below it, tenths of a GiB say nothing.
SMALL_BYTES = GIB // 10
FREE_SLOTS = "FREE SLOTS"
# Of pools that stand in one cell.
POOLS_NAMED = 3


def number(value: float | None) -> str:
    """Returns a number for a table; "-" for what is not known."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def gib(value_bytes: int | None) -> str:
    """Returns bytes as GiB for a table, and little as MiB."""
    if value_bytes is None:
        return "-"
    if value_bytes < SMALL_BYTES:
        return f"{value_bytes / MIB:.0f} MiB"
    return f"{value_bytes / GIB:.1f} GiB"


def free_slots(free: int, total: int) -> str:
    """Returns the cell of a column `FREE_SLOTS`."""
    return f"{free}/{total}"


def slowed(perf_scale: float) -> str:
    """Returns what stands behind a rate while devices lower their clocks; nothing at full speed."""
    return "" if perf_scale == 1.0 else f" (at {perf_scale:.0%})"


def unwell(health: str) -> str:
    """Returns what stands behind a device that cannot be used; nothing for others."""
    return "" if health in ("", "OK") else f" {health}"


def named(pool_ids: Sequence[str]) -> str:
    """The first of these pools by name, and how many more."""
    more = len(pool_ids) - POOLS_NAMED
    # One more takes no more room than its name.
    return ", ".join(pool_ids) if more <= 1 else f"{', '.join(pool_ids[:POOLS_NAMED])} +{more}"
