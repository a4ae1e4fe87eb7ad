"""What a continuation follows: the output of a job so far, put together again. LO-304."""

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.wire.dispatch import Delivered


def delivered(log: OutputLog) -> Delivered | None:
    """Reads a log from the beginning; None unless all that a reader may have is held. O(text)."""
    digest = log.digest()
    if digest is None or log.doubtful or log.oldest_offset:
        return None
    text, pieces, tokens = bytearray(), 0, 0
    ids: list[int] | None = []
    for item in log.items():
        if not item.text_bytes:
            continue
        batch = _batch(item.entry)
        known = len(text) - item.text_offset
        text += "".join(batch.pieces).encode()[known:]
        pieces = max(pieces, batch.first_index + len(batch.pieces))
        tokens += len(batch.token_ids) or len(batch.pieces)
        # Of a chunk that overlaps what came before, it is not known which ids are new.
        complete = batch.token_ids and known == 0
        ids = [*ids, *batch.token_ids] if complete and ids is not None else None
    return Delivered(
        attempt=log.attempt,
        text=text.decode(),
        text_bytes=log.next_offset,
        digest=digest,
        pieces=pieces,
        tokens=tokens,
        token_ids=tuple(ids or ()),
    )


def _batch(entry: bytes) -> events_pb2.TokenBatch:
    return orchestrator_service_pb2.StreamTokensResponse.FromString(entry).events[0].tokens
