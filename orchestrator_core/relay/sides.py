"""Text that was evicted here and is brought back from its host for one reader. LO-301.

The host sends an attempt's output again from a piece on. What of it comes before all that the log
holds is gathered here; the log itself knows the rest already. A read gathers a little at a time, so
a reader that is far behind needs several, and costs no more than one of them.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from orchestrator_core.errors import MalformedOutputError
from orchestrator_core.relay import chunks
from orchestrator_core.relay.items import Frame, Item, text_item
from orchestrator_core.relay.log import OutputLog

# What one read brings, how many a host has at a time, and how long it may take over one.
SIDE_BYTES = 256 * 1024
SIDES_PER_HOST = 8
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Source:
    """Whence a job's output comes again, about `bytes_max` of it.

    `ask` lets the host send again from a piece on, and returns the number of that command: None
    when it cannot be asked. `attempt` is that whose output it has, None: the log's. The piece with
    `first_index` lies at or before what is wanted.
    """

    job_id: str
    host_id: str
    ask: Callable[[int], int | None]
    bytes_max: int = SIDE_BYTES
    attempt: int | None = None
    first_index: int = 0


class SideRead:
    """One read, of the text of an attempt, by default the log's, from `text_offset` on.

    `asked_seq` is the command that asked for it: that what its host wrote before lies further on
    says nothing. `over` is set when it has `items` enough, or when it is certain that there are no
    more.
    """

    def __init__(
        self,
        log: OutputLog,
        text_offset: int,
        asked_seq: int,
        bytes_max: int = SIDE_BYTES,
        attempt: int | None = None,
    ) -> None:
        self.items: list[Item] = []
        self.over = asyncio.Event()
        self._log = log
        self._attempt = log.attempt if attempt is None else attempt
        self._next_offset = text_offset
        self._asked_seq = asked_seq
        self._bytes_left = bytes_max

    def offer(self, frame: Frame, applied_seq: int) -> None:
        """Takes a frame that brings nothing new to the log."""
        if self.over.is_set() or frame.attempt != self._attempt:
            return
        if frame.text_offset > self._next_offset:
            if applied_seq >= self._asked_seq:
                # Its host holds nothing before.
                self.over.set()
            return
        end = frame.text_offset + frame.text_bytes
        if end > self._next_offset and not self._take(frame):
            self.over.set()
        if self._bytes_left <= 0 or self._next_offset >= self._log.oldest_offset:
            self.over.set()

    def _take(self, frame: Frame) -> bool:
        try:
            chunks.read(frame.chunk, frame.text_offset, frame.text_bytes, frame.pieces)
        except MalformedOutputError:
            return False
        item = text_item(frame)
        self.items.append(item)
        self._next_offset = frame.text_offset + frame.text_bytes
        self._bytes_left -= len(item.entry)
        return True


class Turns:
    """So many at a time for each name, in the order in which they came."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._rooms: dict[str, asyncio.Semaphore] = {}
        self._there: Counter[str] = Counter()

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """A turn, once it is there."""
        room = self._rooms.setdefault(name, asyncio.Semaphore(self._each))
        self._there[name] += 1
        try:
            async with room:
                yield
        finally:
            self._there[name] -= 1
            if not self._there[name]:
                del self._there[name], self._rooms[name]


class Sides:
    """The reads that are under way: one of a job, `SIDES_PER_HOST` of a host.

    So a host that does not answer holds up those alone who read from it.
    """

    def __init__(self) -> None:
        self._reads: dict[str, SideRead] = {}
        self._jobs = Turns(1)
        self._hosts = Turns(SIDES_PER_HOST)

    def offer(self, job_id: str, frame: Frame, applied_seq: int) -> None:
        """Shows a frame that the log knew to who reads its job. Cheap when nobody does."""
        read = self._reads.get(job_id)
        if read is not None:
            read.offer(frame, applied_seq)

    async def read(self, source: Source, log: OutputLog, text_offset: int) -> list[Item] | None:
        """The text from `text_offset` on up to what the log holds, or a part of it.

        Nothing where the host has none of it; None where it does not send it in time, or cannot be
        asked. Then it goes on with what is new, which waits meanwhile.
        """
        # Who waits for another reader of the job takes no place of the host.
        async with self._jobs.of(source.job_id), self._hosts.of(source.host_id):
            first_index = max(log.index_before(text_offset), source.first_index)
            asked_seq = source.ask(first_index)
            if asked_seq is None:
                return None
            read = SideRead(log, text_offset, asked_seq, source.bytes_max, source.attempt)
            self._reads[source.job_id] = read
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await read.over.wait()
            except TimeoutError:
                return read.items or None
            finally:
                del self._reads[source.job_id]
                source.ask(log.next_index)
            return read.items
