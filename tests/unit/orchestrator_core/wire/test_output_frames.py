"""Output is read off the wire as protobuf reads it, or left to protobuf."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as pb
from orchestrator_core.relay import chunks
from orchestrator_core.wire import output_frames
from orchestrator_core.wire.output_frames import Columns, columns_of, read_chunk, read_output_frame

SMALL = st.integers(0, (1 << 28) - 1)
SEQS = st.integers(0, (1 << 35) - 1)
LARGE = st.integers(0, (1 << 32) - 1)
PIECES = st.lists(st.text(max_size=5), max_size=4)


@pytest.fixture(autouse=True, scope="module")
def as_compiled() -> object:
    """Interpreted, nothing is read here: protobuf is faster then."""
    before = output_frames.COMPILED
    vars(output_frames)["COMPILED"] = True
    yield
    vars(output_frames)["COMPILED"] = before


@st.composite
def batches(draw: st.DrawFn, numbers: st.SearchStrategy[int] = SMALL) -> events_pb2.TokenBatch:
    """A chunk of a host."""
    pieces = draw(PIECES)
    return events_pb2.TokenBatch(
        attempt=draw(numbers),
        first_index=draw(numbers),
        text_offset=draw(numbers),
        prefix_digest=draw(st.integers(0, (1 << 64) - 1)),
        pieces=pieces,
        token_ids=draw(st.lists(numbers, max_size=4)),
        token_counts=[1] * len(pieces),
    )


@st.composite
def requests(draw: st.DrawFn, numbers: st.SearchStrategy[int] = SMALL) -> pb.DispatchRequest:
    """A frame of a host that has nothing but output."""
    rows = draw(st.lists(st.tuples(*[numbers] * 5, st.binary(max_size=9)), max_size=4))
    columns = list(zip(*rows, strict=True)) or [()] * 6
    tokens = dispatch_pb2.TokenFrames(
        handles=columns[0],
        first_indexes=columns[1],
        piece_counts=columns[2],
        text_offsets=columns[3],
        text_bytes=columns[4],
        chunks=columns[5],
    )
    frame = dispatch_pb2.HostFrame(
        frame_seq=draw(SEQS), applied_dispatch_seq=draw(SEQS), tokens=tokens
    )
    return pb.DispatchRequest(frame=frame)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with some of them changed, left out, doubled or added."""
    at, to = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    middle = draw(
        st.sampled_from((b"", data[at:to] * 2, b"\x00", b"\x80\x00", b"\xff" * 6))
        | st.binary(max_size=3)
    )
    return data[:at] + middle + data[to:]


def assert_like_protobuf_frame(data: bytes) -> None:
    """What was read is what protobuf reads."""
    read = read_output_frame(data)
    if read is None:
        return
    message = pb.DispatchRequest.FromString(data)
    assert [field.name for field, _ in message.ListFields()] == ["frame"]
    frame = message.frame
    names = {field.name for field, _ in frame.ListFields()}
    assert names <= {"frame_seq", "applied_dispatch_seq", "tokens"}
    assert (read.frame_seq, read.applied_dispatch_seq) == (
        frame.frame_seq,
        frame.applied_dispatch_seq,
    )
    told = columns_of(frame.tokens)
    assert [getattr(read.columns, name) for name in Columns.__slots__] == [
        getattr(told, name) for name in Columns.__slots__
    ]


def assert_like_protobuf_chunk(data: bytes, text_offset: int, pieces: int) -> None:
    """What was read is what protobuf reads."""
    read = read_chunk(data, text_offset, pieces)
    if read is None:
        return
    batch = events_pb2.TokenBatch.FromString(data)
    assert (batch.text_offset, len(batch.pieces)) == (text_offset, pieces)
    assert read == chunks.text_of(batch)


@given(requests(), st.data())
def test_a_frame_of_output_is_read_in_its_usual_form(
    message: pb.DispatchRequest, data: st.DataObject
) -> None:
    """And in no other form in which it means something else."""
    encoded = message.SerializeToString()

    assert (read_output_frame(encoded) is not None) == bool(message.frame.tokens.handles)
    assert_like_protobuf_frame(encoded)
    try:
        assert_like_protobuf_frame(data.draw(damaged(encoded)))
    except DecodeError as error:
        raise AssertionError("protobuf cannot read this") from error


@given(batches(), st.data())
def test_a_chunk_is_read_in_its_usual_form(
    batch: events_pb2.TokenBatch, data: st.DataObject
) -> None:
    """And in no other form in which it means something else."""
    encoded, place = batch.SerializeToString(), (batch.text_offset, len(batch.pieces))

    assert read_chunk(encoded, *place) == chunks.text_of(batch)
    assert read_chunk(encoded, place[0], place[1] + 1) is None
    assert read_chunk(encoded, place[0] + 1, place[1]) is None
    try:
        assert_like_protobuf_chunk(data.draw(damaged(encoded)), *place)
    except DecodeError as error:
        raise AssertionError("protobuf cannot read this") from error


@given(requests(LARGE), batches(LARGE))
def test_large_numbers_are_left_to_protobuf(
    message: pb.DispatchRequest, batch: events_pb2.TokenBatch
) -> None:
    """It knows where each of them is cut off."""
    assert_like_protobuf_frame(message.SerializeToString())
    assert_like_protobuf_chunk(batch.SerializeToString(), batch.text_offset, len(batch.pieces))


def test_text_that_is_no_text_is_left_to_protobuf() -> None:
    """Halves of a character are not text, even where they make one together."""
    whole = events_pb2.TokenBatch(pieces=["ab"]).SerializeToString()

    assert read_chunk(whole.replace(b"ab", "ä".encode()), 0, 1) == "ä".encode()
    assert read_chunk(whole.replace(b"ab", b"\xc3a"), 0, 1) is None
    assert read_chunk(b"\x2a\x01\xc3\x2a\x01\xa4", 0, 2) is None


def test_frames_with_more_than_output_are_left_to_protobuf() -> None:
    """Starts and ends of attempts, registrations, and frames that only say that a host lives."""
    frame = dispatch_pb2.HostFrame(frame_seq=1)
    assert read_output_frame(pb.DispatchRequest(frame=frame).SerializeToString()) is None
    frame.tokens.handles.append(1)
    assert read_output_frame(pb.DispatchRequest(frame=frame).SerializeToString()) is None
    assert read_output_frame(b"") is None
    register = pb.DispatchRequest(register=dispatch_pb2.Register(host_id="h"))
    assert read_output_frame(register.SerializeToString()) is None


def test_output_in_two_parts_is_left_to_protobuf() -> None:
    """It puts them together."""
    part = dispatch_pb2.HostFrame(
        tokens=dispatch_pb2.TokenFrames(
            handles=[1],
            first_indexes=[0],
            piece_counts=[0],
            text_offsets=[0],
            text_bytes=[0],
            chunks=[b""],
        )
    ).SerializeToString()

    def request(frame: bytes) -> bytes:
        return bytes((pb.DispatchRequest.FRAME_FIELD_NUMBER << 3 | 2, len(frame))) + frame

    assert read_output_frame(request(part)) is not None
    assert len(pb.DispatchRequest.FromString(request(part * 2)).frame.tokens.handles) == 2
    assert read_output_frame(request(part * 2)) is None
