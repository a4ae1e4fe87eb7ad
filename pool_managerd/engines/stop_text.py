"""Cuts a stop sequence off the output of engines that leave it in."""

from collections.abc import Sequence


class StopText:
    """Passes text on up to the first stop sequence; holds back what may become the start of one.

    Of several that end at the same place the longest wins. O(text * stops) in all but the held
    part, which is shorter than the longest sequence.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.met = False

    def take(self, text: str) -> str:
        """Returns what may be passed on now; nothing once a sequence was met."""
        if self.met or not self._stops:
            return "" if self.met else text
        whole = self._held + text
        places = [(whole.find(stop), stop) for stop in self._stops]
        found = [(place + len(stop), place) for place, stop in places if place >= 0]
        if found:
            self.met, self._held = True, ""
            return whole[: min(found)[1]]
        held = max(_overlap(whole, stop) for stop in self._stops)
        self._held = whole[len(whole) - held :]
        return whole[: len(whole) - held]

    def rest(self) -> str:
        """Returns what was held back, at the end of the output."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` with which `stop` begins, but is not over."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
