"""What readers of a job were told last of its attempts."""

from orchestrator_core.relay.items import Item
from orchestrator_core.relay.retelling import resumed_at, starts


class Announced:
    """The event that announced the latest `attempt`, 0 while there is none; the last `started`."""

    __slots__ = ("_begun", "_entry", "attempt")

    def __init__(self) -> None:
        self.attempt = 0
        self._entry = b""
        self._begun: tuple[int, bytes] | None = None

    def tell(self, attempt: int, entry: bytes) -> None:
        """An attempt is announced."""
        self.attempt, self._entry = attempt, entry
        if starts(entry):
            self._begun = (attempt, entry)

    def beginning(self) -> Item | None:
        """What a reader that has nothing at all is told before the first text.

        The last `started`, or where that was told before a restart, what announced the attempt that
        took up its text. None while nothing was announced.
        """
        if self._begun is not None:
            return Item(self._begun[0], 0, 0, None, self._begun[1])
        return self.again(self.attempt, 0) if self.attempt else None

    def again(self, attempt: int, text_offset: int) -> Item:
        """The `resumed` of an attempt for a reader that missed it and has that much text."""
        told = self._entry if attempt == self.attempt else b""
        return Item(attempt, text_offset, 0, None, resumed_at(attempt, told, text_offset))
