"""Places of an output from which its host can be asked to send evicted text again."""

# How far apart they are, and how many of them.
MARK_BYTES = 64 * 1024
MARKS_MAX = 256


class Marks:
    """Where pieces of the present attempt begin, in order."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """How many places are known."""
        return len(self._places)

    def add(self, text_offset: int, first_index: int) -> None:
        """Notes a place behind the others, if it is far enough from the last one."""
        if not self._places or text_offset >= self._places[-1][0] + MARK_BYTES:
            self._places.append((text_offset, first_index))
            del self._places[:-MARKS_MAX]

    def index_before(self, text_offset: int) -> int:
        """The last known piece at or before a place; 0 where none is known."""
        known = [index for offset, index in self._places if offset <= text_offset]
        return known[-1] if known else 0

    def clear(self) -> None:
        """Forgets all: another attempt has other pieces."""
        self._places.clear()
