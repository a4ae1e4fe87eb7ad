"""Who waits for which reply of the core, by number."""

import asyncio
from collections.abc import Callable
from functools import partial

from orchestrator_core.core.effects import Receipt
from orchestrator_core.core.outcome import Refusal
from orchestrator_core.errors import RefusalError

# A job's receipt, or the id that a cancel or a deletion was about.
Answer = Receipt | str
Tell = Callable[[Answer | Refusal], None]


class Replies:
    """Numbers under which the core replies, each with one who is told, once.

    Without a bound: each stands for a call or for a request of a stream, and these are bounded.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Tell] = {}
        self._next = 1

    def expect(self, tell: Tell) -> int:
        """A number of its own; `tell` must not raise and not wait."""
        number = self._next
        self._next += 1
        self._waiting[number] = tell
        return number

    def future(self) -> tuple[int, asyncio.Future[Answer]]:
        """A number, and the future that gets its answer, or a `RefusalError`."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        return self.expect(partial(_settle, future)), future

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __contains__(self, number: object) -> bool:
        """True while somebody waits for that reply."""
        return number in self._waiting

    def forget(self, number: int) -> bool:
        """Whoever waited went away; False when nobody did."""
        return self._waiting.pop(number, None) is not None

    def answer(self, number: int, answer: Answer | Refusal) -> None:
        """Tells who waits, if anybody still does."""
        tell = self._waiting.pop(number, None)
        if tell is not None:
            tell(answer)

    def refuse_all(self, refusal: Refusal) -> None:
        """Nothing will be answered any more."""
        for number in list(self._waiting):
            self.answer(number, refusal)


def _settle(future: asyncio.Future[Answer], answer: Answer | Refusal) -> None:
    if future.done():
        return
    if isinstance(answer, Refusal):
        future.set_exception(RefusalError(answer))
    else:
        future.set_result(answer)
