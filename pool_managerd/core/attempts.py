"""The token store's pure part: the output of attempts, with offsets and a digest chain.

A log keeps every piece of one attempt until it is released, or until a byte cap evicts pieces that
the orchestrator has acknowledged. Pieces that nobody has acknowledged are never evicted: an attempt
that would need it fails instead. LO-301, LO-302, LO-305.

Pieces live in parallel lists, because this is the hot path of every token: one list per column
costs a fraction of one object per piece.
"""

import enum
import hashlib
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from pool_managerd.core.logprobs import TokenLogprob, logprobs_cost_bytes
from pool_managerd.core.tellable import are_token_ids

PIECE_BYTES_MAX = 65_536
"""A longer piece is split, so that no message outgrows the transport's limit."""

PIECE_OVERHEAD_BYTES = 96
"""Charged for a piece beside its text: what the columns take in memory."""

EMPTY_DIGEST = int.from_bytes(hashlib.sha256(b"").digest()[:8], "big")
"""Digest of no text at all."""


class EndReason(enum.Enum):
    """Why an attempt ended regularly."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class ErrorKind(enum.Enum):
    """How an attempt failed."""

    ENGINE_DIED = "engine_died"
    ENGINE_ERROR = "engine_error"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_OVERFLOW = "context_overflow"
    TIMEOUT = "timeout"
    REPLAY_MISMATCH = "replay_mismatch"
    DEVICE_OUT_OF_MEMORY = "device_out_of_memory"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    OUTPUT_TOO_LARGE = "output_too_large"


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """How an attempt failed, and a sentence without prompt, output or secret."""

    kind: ErrorKind
    message: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt took, as the engine counted it; None where it does not say."""

    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    prefill_time_ms: int | None = None
    decode_time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Terminal:
    """How an attempt ended, and what it took. `job_cancelled`: its job was, not just itself."""

    outcome: EndReason | AttemptFailure
    usage: Usage = Usage()
    job_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """One attempt of one job; `attempt` counts from 1."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place in a job's output: UTF-8 bytes before it, and the digest of those bytes."""

    text_offset: int
    digest: int


class Chunk(NamedTuple):
    """Consecutive pieces of one attempt. `cost_bytes` bounds their size on the wire.

    `token_counts` says how many of `token_ids` each piece has; `logprobs` are those of each piece,
    empty where no piece has any. A tuple, because it is made for each frame.
    """

    first_index: int
    text_offset: int
    prefix_digest: int
    pieces: tuple[str, ...]
    token_ids: tuple[int, ...]
    token_counts: tuple[int, ...]
    text_bytes: int
    cost_bytes: int
    logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Prefix:
    """Text that earlier attempts delivered, in pieces; `tokens` where that is known."""

    pieces: tuple[str, ...]
    tokens: int = 0

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


class Appended(enum.Enum):
    """What became of a piece."""

    KEPT = "kept"
    MISMATCH = "mismatch"


class AttemptLog:
    """The output of one attempt, from its first piece on.

    With `verify_until` nothing is `visible` until the digest there was seen to be equal; what comes
    after it is new. With `prefix` the log begins with text that earlier attempts delivered: it is
    held like what follows, but is not new, and counts as acknowledged.

    Counts are attributes rather than properties, for they are read a dozen times for each token.
    Others read them only:

    Attributes:
        first_index: First piece that is held.
        new_from: First piece held that no earlier attempt has delivered.
        next_index: Index of the piece that comes next.
        text_bytes: UTF-8 bytes of output so far, the prefix included.
        digest: First eight bytes, big-endian, of the SHA-256 of all output so far.
        held_bytes: Memory charged for what is held: UTF-8 bytes and a constant for each piece.
        tokens_out: Tokens generated so far: ids where the engine reports them, else pieces.
        visible: False while a verified replay has not yet reached its boundary.
    """

    def __init__(
        self,
        key: AttemptKey,
        replica: tuple[str, str],
        verify_until: Boundary | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        self.key = key
        self.pool_id, self.replica_id = replica
        self.terminal: Terminal | None = None
        self.started = False
        self.kv_warmth = False
        self._pieces: list[str] = []
        self._token_ids: list[tuple[int, ...]] = []
        # By index of the piece: few jobs ask for them.
        self._logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        # Column i holds the bytes before, and the digest of the text before, piece first_index + i.
        self._offsets = array("Q")
        self._digests = array("Q")
        self._hash = hashlib.sha256()
        self.digest = EMPTY_DIGEST
        self.text_bytes = self.first_index = self.next_index = self.held_bytes = 0
        for piece in prefix.pieces if prefix else ():
            self._hold(piece, piece.encode(), ())
        self.new_from = self.next_index
        self._acked_offset = self.text_bytes
        self.tokens_out = 0
        self.tokens_counted = True
        self._verify = verify_until if verify_until and verify_until.text_offset else None
        self.visible = self._verify is None

    @property
    def acked_offset(self) -> int:
        """UTF-8 bytes that an orchestrator has acknowledged, the most over all streams."""
        return self._acked_offset

    def append(
        self,
        text: str,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> Appended:
        """Adds one piece; MISMATCH when a verified replay produced other text than before.

        Ids that cannot be those of its tokens are left out. LO-304.
        """
        if logprobs:
            return self._append_with(text, token_ids, logprobs)
        assert self.terminal is None, "nothing follows the terminal record"
        if token_ids and not are_token_ids(token_ids):
            token_ids = ()
        data = text.encode()
        if self._verify is not None:
            missing = self._verify.text_offset - self.text_bytes
            if len(data) >= missing:
                halves = (data[:missing], data[missing:])
                return self._cross_boundary(self._verify, halves, token_ids)
        self._add(text, data, token_ids)
        return Appended.KEPT

    def _append_with(
        self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]
    ) -> Appended:
        appended = self.append(text, token_ids)
        if appended is Appended.KEPT:
            # Of a piece that was divided they stand beside the last part, the one that is new.
            self._logprobs[self.next_index - 1] = logprobs
            self.held_bytes += logprobs_cost_bytes(logprobs)
        return appended

    def _cost_bytes_of(self, at: int, text_bytes: int) -> int:
        """Of the piece at a place of the columns, whose text has so many bytes."""
        cost_bytes = _cost_bytes(text_bytes, len(self._token_ids[at]))
        if not self._logprobs:
            return cost_bytes
        return cost_bytes + logprobs_cost_bytes(self._logprobs.get(self.first_index + at, ()))

    def _logprobs_of(self, start: int, end: int) -> tuple[tuple[TokenLogprob, ...], ...]:
        if not self._logprobs:
            return ()
        first = self.first_index
        found = tuple(self._logprobs.get(first + at, ()) for at in range(start, end))
        return found if any(found) else ()

    def _cross_boundary(
        self, boundary: Boundary, halves: tuple[bytes, bytes], token_ids: tuple[int, ...]
    ) -> Appended:
        head, tail = halves
        try:
            head_text, tail_text = head.decode(), tail.decode()
        except UnicodeDecodeError:
            return Appended.MISMATCH
        # The ids go with the part that is sent: the reader has the other part from the earlier
        # attempt.
        self._add(head_text, head, () if tail else token_ids)
        if self.digest != boundary.digest:
            return Appended.MISMATCH
        self._verify = None
        self.visible = True
        self.new_from = self.next_index
        self._acked_offset = self.text_bytes
        if tail:
            self._add(tail_text, tail, token_ids)
        return Appended.KEPT

    def _add(self, text: str, data: bytes, token_ids: tuple[int, ...]) -> None:
        self.tokens_out += len(token_ids) or 1
        if data and not token_ids:
            self.tokens_counted = False
        self._hold(text, data, token_ids)

    def _hold(self, text: str, data: bytes, token_ids: tuple[int, ...]) -> None:
        if len(data) <= PIECE_BYTES_MAX:
            self._add_part(text, data, token_ids)
            return
        step = PIECE_BYTES_MAX // 4  # A character takes at most four bytes.
        for start in range(0, len(text), step):
            part = text[start : start + step]
            self._add_part(part, part.encode(), token_ids if start == 0 else ())

    def _add_part(self, text: str, data: bytes, token_ids: tuple[int, ...]) -> None:
        self._pieces.append(text)
        self._token_ids.append(token_ids)
        self._offsets.append(self.text_bytes)
        self._digests.append(self.digest)
        self._hash.update(data)
        self.digest = int.from_bytes(self._hash.digest()[:8], "big")
        self.next_index += 1
        size = len(data)
        self.text_bytes += size
        self.held_bytes += size + PIECE_OVERHEAD_BYTES + 8 * len(token_ids)

    def end(self, terminal: Terminal) -> None:
        """Closes the log; the first terminal record stands. ORCH-3026."""
        if self.terminal is None:
            self.terminal = terminal

    def offset_of(self, index: int) -> int:
        """UTF-8 bytes of output before piece `index`, which is held or next."""
        at = index - self.first_index
        return self._offsets[at] if at < len(self._offsets) else self.text_bytes

    def prefix_at(self, boundary: Boundary) -> Prefix | None:
        """The text up to `boundary`, for an attempt that goes on from there.

        None when this log lacks the first pieces, when it lies inside a piece, or when the digest
        differs. Linear in the text before it.
        """
        count = bisect_left(self._offsets, boundary.text_offset)
        index = self.first_index + count
        # A log that begins later has evicted its first pieces.
        if self.first_index or self.offset_of(index) != boundary.text_offset:
            return None
        before = self._digests[count] if count < len(self._digests) else self.digest
        if before != boundary.digest:
            return None
        # As orchestratord counts them: a piece without ids is one token.
        tokens = [len(ids) or 1 for ids in self._token_ids[:count]]
        return Prefix(tuple(self._pieces[:count]), sum(tokens))

    def read_from(self, first_index: int, text_bytes_max: int, cost_bytes_max: int) -> Chunk | None:
        """Pieces from `first_index` on within both limits, at least one; None when none is there.

        A caller that may not exceed `text_bytes_max` compares `Chunk.text_bytes` itself: one piece
        that is larger than the limit is returned all the same. Cost is linear in the pieces
        returned.
        """
        first_index = max(first_index, self.first_index)
        if not self.visible or first_index >= self.next_index:
            return None
        start = first_index - self.first_index
        offset = self._offsets[start]
        if first_index + 1 == self.next_index:
            # What most chunks are: the one piece that came last.
            end, before = start + 1, self.text_bytes
            cost_bytes = self._cost_bytes_of(start, before - offset)
        else:
            end, before, cost_bytes = self._within(start, text_bytes_max, cost_bytes_max)
        ids = self._token_ids[start:end]
        return Chunk(
            first_index=first_index,
            text_offset=offset,
            prefix_digest=self._digests[start],
            pieces=tuple(self._pieces[start:end]),
            token_ids=ids[0] if len(ids) == 1 else tuple(chain.from_iterable(ids)),
            token_counts=tuple(map(len, ids)),
            text_bytes=before - offset,
            cost_bytes=cost_bytes,
            logprobs=self._logprobs_of(start, end),
        )

    def _within(self, start: int, text_bytes_max: int, cost_bytes_max: int) -> tuple[int, int, int]:
        """Where pieces from `start` on exceed a limit, the bytes before that, and their cost."""
        offset = before = self._offsets[start]
        end, cost_bytes, last = start, 0, len(self._pieces)
        while end < last:
            after = self._offsets[end + 1] if end + 1 < last else self.text_bytes
            piece_cost = self._cost_bytes_of(end, after - before)
            over = after - offset > text_bytes_max or cost_bytes + piece_cost > cost_bytes_max
            if over and end > start:
                break
            cost_bytes += piece_cost
            before, end = after, end + 1
        return end, before, cost_bytes

    def ack(self, text_offset: int) -> None:
        """Notes that the orchestrator has the first `text_offset` bytes. Never goes back."""
        self._acked_offset = max(self._acked_offset, min(text_offset, self.text_bytes))

    def evict_acked(self, wanted_bytes: int) -> int:
        """Forgets acknowledged pieces, the oldest first, until so much is free; returns how much.

        Linear in the pieces held.
        """
        ends = [*self._offsets[1:], self.text_bytes] if self._pieces else []
        # An empty piece right at the acknowledged offset may not have been received.
        count = min(
            bisect_right(ends, self._acked_offset), bisect_left(self._offsets, self._acked_offset)
        )
        if not self.visible or not count:
            return 0
        freed = 0
        for index in range(count):
            if freed >= wanted_bytes:
                count = index
                break
            size = ends[index] - self._offsets[index]
            freed += self._cost_bytes_of(index, size)
        for column in (self._pieces, self._token_ids, self._offsets, self._digests):
            del column[:count]
        for index in range(self.first_index, self.first_index + count) if self._logprobs else ():
            self._logprobs.pop(index, None)
        self.first_index += count
        self.new_from = max(self.new_from, self.first_index)
        self.held_bytes -= freed
        return freed


def _cost_bytes(text_bytes: int, token_count: int) -> int:
    return text_bytes + PIECE_OVERHEAD_BYTES + 8 * token_count
