# SPDX-License-Identifier: Apache-2.0
"""Values of options: what a text means, or what must be written instead.

Each reader raises `argparse.ArgumentTypeError`, which argparse shows behind the option's name. The
bounds are those of the fields that carry the values, so that nothing fails on its way to the wire.
"""

import argparse
from collections.abc import Callable

UINT32_MAX, UINT64_MAX = 2**32 - 1, 2**64 - 1
DAY_S = 86_400
INTERVAL_MIN_S, INTERVAL_MAX_S = 0.1, 3600.0
SPAN_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": DAY_S}
SIZE_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def named(text: str) -> str:
    """An id that somebody typed; what a script's empty variable leaves is none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: give an id")
    return text


def whole(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {low} to {high}, is {text!r}"
            )
        return value

    return read


def positive(text: str) -> int:
    """A number of things."""
    return whole(1, UINT32_MAX)(text)


def amount(text: str) -> int:
    """What may be spent."""
    return whole(1, UINT64_MAX)(text)


def number(text: str) -> float:
    """Any number; the server judges its size."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, is {text!r}") from None


def seconds(text: str) -> float:
    """Seconds, more than 0 and at most a day, which bounds every wait."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # Also refuses nan and inf.
    if not 0 < value <= DAY_S:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most {DAY_S} seconds")
    return value


def interval(text: str) -> float:
    """Seconds between two looks."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not INTERVAL_MIN_S <= value <= INTERVAL_MAX_S:
        must = f"must be from {INTERVAL_MIN_S} to {INTERVAL_MAX_S} seconds"
        raise argparse.ArgumentTypeError(must)
    return value


def deadline(text: str) -> float:
    """Seconds, written as 90s, 5m or 1h."""
    return _span(text, "smh", DAY_S, "must be like 90s, 5m or 1h, at most a day")


def grace(text: str) -> float:
    """Seconds, written as 90s, 5m, 1h or 7d."""
    return _span(text, "smhd", 30 * DAY_S, "must be like 90s, 5m, 1h or 7d, at most 30 days")


def size(text: str) -> int:
    """Bytes, or a size in KiB, MiB, GiB or TiB."""
    unit = text[-3:]
    digits = text[:-3] if unit in SIZE_UNITS else text
    try:
        value = round(float(digits) * SIZE_UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        value = 0
    if not 1 <= value <= UINT64_MAX:
        raise argparse.ArgumentTypeError("must be like 8GiB, 512MiB, or a number of bytes")
    return value


def pair(text: str) -> tuple[str, str]:
    """A key and its value."""
    key, found, value = text.partition("=")
    if not key or not found:
        raise argparse.ArgumentTypeError("must be KEY=VALUE")
    return key, value


def _span(text: str, units: str, max_s: float, must: str) -> float:
    try:
        value = float(text[:-1]) * SPAN_UNITS_S[text[-1:]] if text[-1:] in units else -1.0
    except (KeyError, ValueError):
        value = -1.0
    if not 0 <= value <= max_s:
        raise argparse.ArgumentTypeError(must)
    return value
