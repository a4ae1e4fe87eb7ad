"""Base-128 numbers of the protobuf encoding.

Source: protobuf.dev/programming-guides/encoding.
"""

from typing import Final

_CONTINUES: Final = 0x80
_DIGIT: Final = 0x7F
_SHORT: Final = [bytes((value,)) for value in range(_CONTINUES)]


def encode_varint(value: int) -> bytes:
    """Encodes a number that is not negative."""
    if value < _CONTINUES:
        return _SHORT[value]
    digits = bytearray()
    while value >= _CONTINUES:
        digits.append(value & _DIGIT | _CONTINUES)
        value >>= 7
    digits.append(value)
    return bytes(digits)
