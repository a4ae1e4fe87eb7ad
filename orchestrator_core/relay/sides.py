"""Text that was evicted here and is brought back from its host for one reader. LO-301.

The host sends an attempt's output again from a piece on. What of it comes before all that the log
holds is gathered here; the log itself knows the rest already. A read gathers a little at a time, so
a reader that is far behind needs several, and costs no more than one of them.
"""

import asyncio
from collections.abc import Callable

from orchestrator_core.errors import MalformedOutputError
from orchestrator_core.relay import chunks
from orchestrator_core.relay.items import Frame, Item
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.wire.frames import encode_token_event

# What one read brings, how many there are at a time, and how long a host may take over one.
SIDE_BYTES = 256 * 1024
SIDES_MAX = 32
PATIENCE_S = 5.0

Ask = Callable[[int], int | None]
"""Lets a host send again from a piece on; the number of that command, None when it cannot."""


class SideRead:
    """One read, of the text of the log's attempt from `text_offset` on.

    `asked_seq` is the command that asked for it: what its host wrote before says nothing. `over` is
    set when it has `items` enough, or when it is certain that there are no more; `gone` when the
    next read of the job may begin.
    """

    def __init__(self, log: OutputLog, text_offset: int, asked_seq: int) -> None:
        self.items: list[Item] = []
        self.over = asyncio.Event()
        self.gone = asyncio.Event()
        self._log = log
        self._attempt = log.attempt
        self._next_offset = text_offset
        self._asked_seq = asked_seq
        self._bytes = 0

    def offer(self, frame: Frame, applied_seq: int) -> None:
        """Takes a frame that brings nothing new to the log."""
        if self.over.is_set() or applied_seq < self._asked_seq or frame.attempt != self._attempt:
            return
        if frame.text_offset > self._next_offset:
            # Its host holds nothing before.
            self.over.set()
            return
        end = frame.text_offset + frame.text_bytes
        if end > self._next_offset and not self._take(frame):
            self.over.set()
        if self._bytes >= SIDE_BYTES or self._next_offset >= self._log.oldest_offset:
            self.over.set()

    def _take(self, frame: Frame) -> bool:
        try:
            batch, _ = chunks.checked(
                frame.chunk, frame.text_offset, frame.text_bytes, frame.pieces
            )
        except MalformedOutputError:
            return False
        entry = encode_token_event(frame.chunk)
        self.items.append(
            Item(
                frame.attempt,
                frame.text_offset,
                frame.text_bytes,
                batch.prefix_digest,
                entry,
                frame.first_index,
            )
        )
        self._next_offset = frame.text_offset + frame.text_bytes
        self._bytes += len(entry)
        return True


class Sides:
    """The reads that are under way, at most one of a job and `SIDES_MAX` in all."""

    def __init__(self) -> None:
        self._reads: dict[str, SideRead] = {}
        self._room = asyncio.Semaphore(SIDES_MAX)

    def offer(self, job_id: str, frame: Frame, applied_seq: int) -> None:
        """Shows a frame that the log knew to who reads its job. Cheap when nobody does."""
        read = self._reads.get(job_id)
        if read is not None:
            read.offer(frame, applied_seq)

    async def read(
        self, job_id: str, log: OutputLog, text_offset: int, ask: Ask
    ) -> list[Item] | None:
        """The text from `text_offset` on up to what the log holds, or a part of it.

        Nothing where the host has none of it; None where it does not send it in time, or cannot be
        asked. Then it goes on with what is new, which waits meanwhile.
        """
        async with self._room:
            while (other := self._reads.get(job_id)) is not None:
                await other.gone.wait()
            asked_seq = ask(log.index_before(text_offset))
            if asked_seq is None:
                return None
            read = self._reads[job_id] = SideRead(log, text_offset, asked_seq)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await read.over.wait()
            except TimeoutError:
                return read.items or None
            finally:
                del self._reads[job_id]
                read.gone.set()
                ask(log.next_index)
            return read.items
