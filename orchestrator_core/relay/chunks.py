"""Chunks of output: encoded TokenBatches, which are opened only where it cannot be helped."""

from google.protobuf.message import DecodeError

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.errors import MalformedOutputError
from orchestrator_core.wire.output_frames import read_chunk


def parse(chunk: bytes) -> events_pb2.TokenBatch:
    """Opens a chunk; what is none comes out empty."""
    try:
        return events_pb2.TokenBatch.FromString(chunk)
    except DecodeError:
        return events_pb2.TokenBatch()


def read(chunk: bytes, text_offset: int, text_bytes: int, pieces: int) -> bytes:
    """The text of a chunk. Raises as `checked`."""
    text = read_chunk(chunk, text_offset, pieces)
    if text is not None and len(text) == text_bytes:
        return text
    return checked(chunk, text_offset, text_bytes, pieces)[1]


def checked(
    chunk: bytes, text_offset: int, text_bytes: int, pieces: int
) -> tuple[events_pb2.TokenBatch, bytes]:
    """A chunk and its text.

    Raises:
        MalformedOutputError: when it is not what its frame says of it.
    """
    batch = parse(chunk)
    text = text_of(batch)
    if (batch.text_offset, len(text), len(batch.pieces)) != (text_offset, text_bytes, pieces):
        raise MalformedOutputError(f"a chunk of {text_bytes} bytes at {text_offset} cannot be read")
    return batch, text


def text_of(batch: events_pb2.TokenBatch) -> bytes:
    """The text of a batch, in UTF-8."""
    return "".join(batch.pieces).encode()


def cut(batch: events_pb2.TokenBatch, end: int) -> events_pb2.TokenBatch:
    """The pieces of a batch that end at or before byte `end` of the output, with their tokens."""
    room, count = end - batch.text_offset, 0
    for piece in batch.pieces:
        room -= len(piece.encode())
        if room < 0:
            break
        count += 1
    token_counts = batch.token_counts[:count]
    return events_pb2.TokenBatch(
        attempt=batch.attempt,
        first_index=batch.first_index,
        text_offset=batch.text_offset,
        prefix_digest=batch.prefix_digest,
        pieces=batch.pieces[:count],
        token_ids=batch.token_ids[: sum(token_counts)],
        token_counts=token_counts,
        logprobs=batch.logprobs[:count],
    )
