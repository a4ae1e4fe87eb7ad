"""Looks into a job's payload without decoding the prompt, which may be megabytes long."""

from google.protobuf.message import DecodeError

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.wire.varint import decode_varint

_SAMPLING = job_pb2.JobSpec.SAMPLING_FIELD_NUMBER
_LABELS = job_pb2.JobSpec.LABELS_FIELD_NUMBER

_VARINT, _FIXED64, _LEN, _FIXED32 = 0, 1, 2, 5


def labels_of(payload: bytes) -> dict[str, str]:
    """Returns the client's labels. O(fields), not O(bytes). Raises `DecodeError`."""
    return dict(job_pb2.JobSpec.FromString(_pick(payload, _LABELS)).labels)


def seed_of(payload: bytes) -> int:
    """Returns the seed in use, 0 when the payload has none. O(fields). Raises `DecodeError`."""
    return job_pb2.JobSpec.FromString(_pick(payload, _SAMPLING)).sampling.seed


def _pick(payload: bytes, number: int) -> bytes:
    """Returns the entries of one length-delimited field, tags included.

    Source: protobuf.dev/programming-guides/encoding.
    """
    picked: list[bytes] = []
    at = 0
    while at < len(payload):
        start = at
        tag, at = decode_varint(payload, at)
        at = _skip(payload, at, tag & 7)
        if at > len(payload):
            raise DecodeError("payload ends inside a field")
        if tag == number << 3 | _LEN:
            picked.append(payload[start:at])
    return b"".join(picked)


def _skip(payload: bytes, at: int, wire_type: int) -> int:
    if wire_type == _LEN:
        size, at = decode_varint(payload, at)
        return at + size
    if wire_type == _VARINT:
        return decode_varint(payload, at)[1]
    if wire_type == _FIXED64:
        return at + 8
    if wire_type == _FIXED32:
        return at + 4
    raise DecodeError(f"payload has wire type {wire_type}")
