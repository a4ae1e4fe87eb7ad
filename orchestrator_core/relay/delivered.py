"""What a continuation follows: the output of a job so far, put together again. LO-304."""

from collections.abc import Sequence

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.wire.dispatch import Delivered


def delivered(log: OutputLog, brought: Sequence[Item] = ()) -> Delivered | None:
    """Reads a log from the beginning; None unless all that a reader may have is held. O(text).

    What was evicted may be `brought` from its host, from the beginning on.
    """
    digest = log.digest()
    if digest is None or log.doubtful or log.oldest_offset > (brought[-1].end if brought else 0):
        return None
    output = _Output()
    for item in (*brought, *log.items()):
        if item.text_bytes:
            output.add(_batch(item.entry))
    return Delivered(
        attempt=log.attempt,
        text=output.text.decode(),
        text_bytes=log.next_offset,
        digest=digest,
        tokens=output.tokens,
        token_ids=tuple(output.ids) if output.ids_known else (),
    )


class _Output:
    """Text, tokens and ids of batches that may overlap.

    A piece without ids counts as one token, as at its host. One that was partly known before is
    counted, but which of its ids are new nobody knows.
    """

    def __init__(self) -> None:
        self.text = bytearray()
        self.tokens = 0
        self.ids: list[int] = []
        self.ids_known = True

    def add(self, batch: events_pb2.TokenBatch) -> None:
        end, at = batch.text_offset, 0
        counts = batch.token_counts or [0] * len(batch.pieces)
        for piece, count in zip(batch.pieces, counts, strict=False):
            data, ids = piece.encode(), batch.token_ids[at : at + count]
            end, at = end + len(data), at + count
            new = end - len(self.text)
            if new > 0 or (new == 0 and not data):
                self.ids_known = self.ids_known and new == len(data) and bool(ids or not data)
                self.text += data[len(data) - new :]
                self.tokens += len(ids) or 1
                self.ids += ids


def _batch(entry: bytes) -> events_pb2.TokenBatch:
    return orchestrator_service_pb2.StreamTokensResponse.FromString(entry).events[0].tokens
