"""Encoded entries equal what the typed message would encode. LO-302 relies on chunks unopened."""

import pytest
from google.protobuf import wrappers_pb2
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2, orchestrator_service_pb2
from orchestrator_core.wire.frames import encode_event, encode_token_event
from orchestrator_core.wire.varint import encode_varint
from tests.unit.orchestrator_core.wire.messages import messages

Response = orchestrator_service_pb2.StreamTokensResponse


@given(st.lists(messages(events_pb2.TokenBatch), max_size=4))
def test_relayed_chunks_read_like_typed_events(batches: list[events_pb2.TokenBatch]) -> None:
    """A response made of wrapped chunks is the response that the typed message would be."""
    relayed = b"".join(encode_token_event(batch.SerializeToString()) for batch in batches)
    typed = Response(events=[events_pb2.JobEvent(tokens=batch) for batch in batches])

    assert Response.FromString(relayed) == typed
    assert relayed == typed.SerializeToString()


@given(st.lists(messages(events_pb2.JobEvent), max_size=4))
def test_encoded_events_read_like_typed_events(events: list[events_pb2.JobEvent]) -> None:
    """Any event can be joined with others without building the response."""
    joined = b"".join(encode_event(event) for event in events)

    assert joined == Response(events=events).SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 128, 16_380, 16_384, 3_000_000])
def test_lengths_are_right_at_every_size_of_a_number(size: int) -> None:
    """The lengths around a chunk grow by a byte at 128 and 16,384."""
    batch = events_pb2.TokenBatch(pieces=["x" * size])
    typed = Response(events=[events_pb2.JobEvent(tokens=batch)])

    assert encode_token_event(batch.SerializeToString()) == typed.SerializeToString()


def test_a_chunk_is_not_looked_into() -> None:
    """What is no TokenBatch passes through unchanged: the reader judges it, not the relay."""
    chunk = b"\xff\xff\xff"

    assert encode_token_event(chunk).endswith(b"\x1a\x03" + chunk)


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_encoded_as_protobuf_reads_them(value: int) -> None:
    """Every 64-bit number comes back as the only field of a message."""
    assert wrappers_pb2.UInt64Value.FromString(b"\x08" + encode_varint(value)).value == value
