"""What a continuation follows: the output of a job so far, put together again. LO-304."""

from itertools import accumulate

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.wire.dispatch import Delivered


def delivered(log: OutputLog) -> Delivered | None:
    """Reads a log from the beginning; None unless all that a reader may have is held. O(text)."""
    digest = log.digest()
    if digest is None or log.doubtful or log.oldest_offset:
        return None
    text, tokens = bytearray(), 0
    ids: list[int] | None = []
    for item in log.items():
        if not item.text_bytes:
            continue
        batch = _batch(item.entry)
        known = len(text) - item.text_offset
        text += "".join(batch.pieces).encode()[known:]
        tokens += _new_tokens(batch, known)
        # Of a chunk that overlaps what came before, it is not known which ids are new.
        complete = batch.token_ids and known == 0
        ids = [*ids, *batch.token_ids] if complete and ids is not None else None
    return Delivered(
        attempt=log.attempt,
        text=text.decode(),
        text_bytes=log.next_offset,
        digest=digest,
        tokens=tokens,
        token_ids=tuple(ids or ()),
    )


def _new_tokens(batch: events_pb2.TokenBatch, known: int) -> int:
    """Tokens of a batch beyond its first `known` bytes, which came before."""
    if not known:
        return len(batch.token_ids) or len(batch.pieces)
    counts = batch.token_counts or [1] * len(batch.pieces)
    ends = accumulate(len(piece.encode()) for piece in batch.pieces)
    return sum(count for end, count in zip(ends, counts, strict=False) if end > known)


def _batch(entry: bytes) -> events_pb2.TokenBatch:
    return orchestrator_service_pb2.StreamTokensResponse.FromString(entry).events[0].tokens
