"""Collects every bad field of a request, so that a client can mend them all at once. ORCH-3016."""

import math
import re

from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal

# More than this many bad fields say nothing new; the refusal tells how many there were.
VIOLATIONS_MAX = 64


class Violations:
    """Bad fields of one message, in order of discovery. The first `VIOLATIONS_MAX` are kept.

    Of all, `stale` ones may have been good when the same message came for the first time.
    """

    __slots__ = ("_found", "stale", "total")

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []
        self.stale = self.total = 0

    @property
    def found(self) -> tuple[FieldViolation, ...]:
        """What was found."""
        return tuple(self._found)

    def add(self, field: str, description: str) -> None:
        """Notes a bad field by its proto path and says what to change."""
        self.total += 1
        if len(self._found) < VIOLATIONS_MAX:
            self._found.append(FieldViolation(field, description))

    def add_stale(self, field: str, description: str) -> None:
        """Notes a field that time may have made bad, as `add` does."""
        self.stale += 1
        self.add(field, description)

    def length(self, field: str, value: str, chars_max: int) -> None:
        """Checks that a text is not too long."""
        if len(value) > chars_max:
            self.add(field, f"has {len(value)} characters, at most {chars_max} are allowed")

    def count(self, field: str, size: int, size_max: int) -> bool:
        """Checks that a list is not too long; returns True when it is short enough to look into."""
        if size > size_max:
            self.add(field, f"has {size} entries, at most {size_max} are allowed")
        return size <= size_max

    def pattern(self, field: str, value: str, pattern: re.Pattern[str], what: str) -> None:
        """Checks that a text, unless empty, has a form; `what` describes it."""
        if value and pattern.fullmatch(value) is None:
            self.add(field, f"must be {what}")

    def positive(self, field: str, value: int | None) -> None:
        """Checks that a number, where set, is at least 1."""
        if value is not None and value < 1:
            self.add(field, "must be at least 1; leave it out for no value")

    def within(self, field: str, value: float, low: float, high: float, *, open_low: bool) -> None:
        """Checks that a number is finite and in the interval; the upper bound belongs to it."""
        above = low < value if open_low else low <= value
        if math.isfinite(value) and above and value <= high:
            return
        if math.isinf(high):
            self.add(field, f"must be a finite number of at least {low:g}, is {value:g}")
        else:
            bracket = "(" if open_low else "["
            self.add(field, f"must be in {bracket}{low:g}, {high:g}], is {value:g}")


def refusal_of(bad: Violations) -> Refusal:
    """INVALID_PARAMS with every bad field; there must be one."""
    first = bad.found[0]
    message = f"{first.field} {first.description}"
    if bad.total > 1:
        message += f" (and {bad.total - 1} more)"
    return Refusal(
        Reason.INVALID_PARAMS,
        message,
        metadata={"violations_total": str(bad.total)},
        violations=bad.found,
    )
