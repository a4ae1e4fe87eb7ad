"""Base-128 numbers of the protobuf encoding.

Source: protobuf.dev/programming-guides/encoding.
"""

from google.protobuf.message import DecodeError

_CONTINUES = 0x80
_DIGIT = 0x7F
_BITS_MAX = 64


def encode_varint(value: int) -> bytes:
    """Encodes a number that is not negative."""
    if value < _CONTINUES:
        return bytes((value,))
    digits = bytearray()
    while value >= _CONTINUES:
        digits.append(value & _DIGIT | _CONTINUES)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the number that begins at `at`, and where it ends. Raises `DecodeError`."""
    value = shift = 0
    while shift < _BITS_MAX:
        if at >= len(data):
            raise DecodeError("data ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & _DIGIT) << shift
        if byte < _CONTINUES:
            return value, at
        shift += 7
    raise DecodeError("a number has more than ten bytes")
