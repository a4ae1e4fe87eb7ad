"""How long texts are waited for that hosts are to bring, many at a time. LO-304."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _Wait:
    """One text: its host may send nothing for `stall_s`, and at `end_s` it ends in any case."""

    limit: asyncio.Timeout
    stall_s: float
    end_s: float

    def moves(self, *, stalls: bool) -> None:
        """Counts from now on; with `stalls` the host is asked and can be silent."""
        if not self.limit.expired():
            stalled_s = asyncio.get_running_loop().time() + self.stall_s
            self.limit.reschedule(min(stalled_s, self.end_s) if stalls else self.end_s)


class Patience:
    """The texts that are waited for, by host; `total_s` is the most for each.

    Those of one host end together when it has sent nothing of any of them for as long as each may
    stall. While none of them is being read it cannot send, so that does not count.
    """

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s
        self._waits: dict[str, dict[_Wait, None]] = {}
        self._reading: Counter[str] = Counter()

    @asynccontextmanager
    async def of(self, host_id: str, stall_s: float) -> AsyncIterator[None]:
        """Ends the block when its time is over.

        Raises:
            TimeoutError: then.
        """
        end_s = asyncio.get_running_loop().time() + self._total_s
        async with asyncio.timeout_at(end_s) as limit:
            wait = _Wait(limit, stall_s, end_s)
            waits = self._waits.setdefault(host_id, {})
            waits[wait] = None
            wait.moves(stalls=self._reading[host_id] > 0)
            try:
                yield
            finally:
                del waits[wait]
                if not waits:
                    del self._waits[host_id]

    @contextmanager
    def reading(self, host_id: str) -> Iterator[None]:
        """A text of the host is read within the block."""
        self._reading[host_id] += 1
        if self._reading[host_id] == 1:
            self.heard(host_id)
        try:
            yield
        finally:
            self._reading[host_id] -= 1
            if not self._reading[host_id]:
                del self._reading[host_id]
                self._count(host_id, stalls=False)

    def heard(self, host_id: str) -> None:
        """A part of a text came. O(texts of the host)."""
        self._count(host_id, stalls=True)

    def _count(self, host_id: str, *, stalls: bool) -> None:
        for wait in self._waits.get(host_id, ()):
            wait.moves(stalls=stalls)
