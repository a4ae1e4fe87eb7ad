"""Slots of one engine incarnation: who holds them."""

from collections.abc import Hashable


class Slots:
    """At most `total` holders at a time. LO-204.

    Raises:
        ValueError: when `total` is not positive.
    """

    def __init__(self, total: int) -> None:
        if total <= 0:
            raise ValueError("an engine has at least one slot")
        self._total = total
        self._holders: dict[Hashable, None] = {}

    @property
    def total(self) -> int:
        """Slots in all."""
        return self._total

    @property
    def free(self) -> int:
        """Slots without a holder."""
        return self._total - len(self._holders)

    def acquire(self, holder: Hashable) -> bool:
        """Takes a slot for `holder`; False when none is free. Taking twice is one slot."""
        if holder in self._holders:
            return True
        if not self.free:
            return False
        self._holders[holder] = None
        return True

    def release(self, holder: Hashable) -> None:
        """Gives the slot of `holder` back; without effect when it holds none."""
        self._holders.pop(holder, None)
