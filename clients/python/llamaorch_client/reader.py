# SPDX-License-Identifier: Apache-2.0
"""Verifies the output of one job across any number of connections (LO-301). No I/O.

The reader is what makes a resumed stream trustworthy: each batch must begin where the text ends,
with the digest of exactly that text. What overlaps is compared and trimmed, a gap is an error.
"""

import hashlib

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch_client import wire
from llamaorch_client.errors import IntegrityError
from llamaorch_client.events import Event, Failed, ResumePoint, TokenLogprob, Tokens

# Text that a repeated batch is compared with. Older repetitions are trimmed by offset alone; the
# digest of the next batch, or of the end, still proves the whole.
TAIL_BYTES = 64 * 1024


class OutputReader:
    """All that is known about one job's output: attempt, length, SHA-256, and the last bytes."""

    def __init__(self, resume_from: ResumePoint | None) -> None:
        text = resume_from.text.encode() if resume_from is not None else b""
        self._attempt = resume_from.attempt if resume_from is not None else 0
        self._announced = 0
        self._offset = len(text)
        self._sha = hashlib.sha256(text)
        self._tail = bytearray(text[-TAIL_BYTES:])
        self._ended = False

    @property
    def ended(self) -> bool:
        """True after the job's outcome."""
        return self._ended

    @property
    def attempt(self) -> int:
        """Attempt of the last batch; 0 before the first."""
        return self._attempt

    @property
    def text_offset(self) -> int:
        """UTF-8 bytes of verified output."""
        return self._offset

    def resume_point(self) -> events_pb2.ResumePoint | None:
        """Returns where to go on, or None for the beginning."""
        if self._attempt == 0 and self._offset == 0:
            return None
        return events_pb2.ResumePoint(
            attempt=self._attempt, text_offset=self._offset, prefix_digest=self._digest()
        )

    def accept(self, event: events_pb2.JobEvent) -> Event | None:
        """Checks the next event; returns it, or None when it is nothing new or of an unknown kind.

        Raises:
            IntegrityError: a gap, a wrong digest, other text than before, or anything after the
            outcome.
        """
        kind = event.WhichOneof("event")
        if kind is None:
            return None
        if self._ended:
            raise IntegrityError(f"the server sent `{kind}` after the job's outcome")
        match kind:
            case "tokens":
                return self.accept_tokens(event.tokens)
            case "end":
                return self._end(event.end)
            case "error":
                self._ended = True
                return Failed(wire.outcome(event.error))
            case _:
                return self._progress(event)

    def accept_tokens(self, batch: events_pb2.TokenBatch) -> Tokens | None:
        """Checks the next batch of output, as `accept`."""
        if self._ended:
            raise IntegrityError("the server sent `tokens` after the job's outcome")
        return self._tokens(batch)

    def _progress(self, event: events_pb2.JobEvent) -> Event | None:
        match event.WhichOneof("event"):
            case "started":
                return wire.started(event.started) if self._is_new(event.started.attempt) else None
            case "resumed":
                return self._resumed(event.resumed)
            case "queued":
                return wire.queued(event.queued)
            case "metrics":
                return wire.metrics(event.metrics)
            case _:
                return None

    def _digest(self) -> int:
        return int.from_bytes(self._sha.digest()[:8], "big")

    def _is_new(self, attempt: int) -> bool:
        # After a reconnect the server may announce again the attempt that is already known.
        if attempt <= self._announced:
            return False
        self._announced = attempt
        return True

    def _resumed(self, resumed: events_pb2.Resumed) -> Event | None:
        continues = resumed.mode != events_pb2.RESUME_MODE_VERIFIED_REPLAY
        if not self._is_new(resumed.attempt):
            return None
        if continues and resumed.text_offset < self._offset:
            raise IntegrityError(
                f"attempt {resumed.attempt} takes back output: it goes on at byte "
                f"{resumed.text_offset}, but {self._offset} were delivered"
            )
        return wire.resumed(resumed)

    def _tokens(self, batch: events_pb2.TokenBatch) -> Tokens | None:
        data = "".join(batch.pieces).encode()
        if batch.text_offset > self._offset:
            raise IntegrityError(
                f"output is missing: {self._offset} bytes received, the next batch begins at "
                f"{batch.text_offset}"
            )
        if batch.text_offset == self._offset and batch.prefix_digest != self._digest():
            raise IntegrityError(f"the output before byte {self._offset} differs from the server's")
        known = self._offset - batch.text_offset
        self._compare(data[:known], batch.text_offset)
        if len(data) <= known:
            return None
        if batch.attempt < self._attempt:
            raise IntegrityError(
                f"attempt {batch.attempt} sent new output after attempt {self._attempt}"
            )
        return self._append(batch, data[known:], known)

    def _compare(self, repeated: bytes, start: int) -> None:
        tail_start = self._offset - len(self._tail)
        skip = max(0, tail_start - start)
        begin = start + skip - tail_start
        held = self._tail[begin : begin + max(0, len(repeated) - skip)]
        if repeated[skip:] != held:
            raise IntegrityError(f"repeated output from byte {start} differs from what came before")

    def _append(self, batch: events_pb2.TokenBatch, new: bytes, known: int) -> Tokens:
        skipped, pieces = _trim(tuple(batch.pieces), known)
        ids = tuple(batch.token_ids)
        tokens = Tokens(
            attempt=batch.attempt,
            first_index=batch.first_index + skipped,
            text_offset=self._offset,
            pieces=pieces,
            token_ids=ids if known == 0 else (),
            logprobs=_logprobs(batch, skipped, pieces),
        )
        self._attempt = batch.attempt
        self._offset += len(new)
        self._sha.update(new)
        self._tail += new
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        return tokens

    def _end(self, end: events_pb2.End) -> Event:
        if end.text_bytes != self._offset:
            raise IntegrityError(
                f"the job ended with {end.text_bytes} bytes of output, {self._offset} were received"
            )
        if end.HasField("text_digest") and end.text_digest != self._digest():
            raise IntegrityError("the whole output differs from the server's")
        self._ended = True
        return wire.end(end)


def _trim(pieces: tuple[str, ...], known: int) -> tuple[int, tuple[str, ...]]:
    """Drops the first `known` bytes; returns the number of whole pieces dropped, and the rest."""
    for index, piece in enumerate(pieces):
        data = piece.encode()
        if known < len(data):
            try:
                rest = data[known:].decode()
            except UnicodeDecodeError:
                raise IntegrityError("a repeated batch splits a character") from None
            return index, (rest, *pieces[index + 1 :])
        known -= len(data)
    return len(pieces), ()


def _logprobs(
    batch: events_pb2.TokenBatch, skipped: int, pieces: tuple[str, ...]
) -> tuple[tuple[TokenLogprob, ...], ...]:
    """Those of the pieces that are left; a piece whose beginning was delivered had its own then."""
    if not batch.logprobs:
        return ()
    left = wire.logprobs(batch)[skipped:]
    return left if pieces[0] == batch.pieces[skipped] else ((), *left[1:])
