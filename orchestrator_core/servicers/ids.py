"""Ids and seeds: the randomness that enters the core as event data."""

import os

# Random bytes are asked for in blocks: the kernel's answer costs the same for 2 KiB as for ten.
_BLOCK_BYTES = 2_048
_ID_BYTES, _SEED_BYTES, _CORRELATION_BYTES = 10, 8, 16


class Ids:
    """Makes ids and seeds. Belongs to the event loop's thread, and to one process: no fork."""

    def __init__(self) -> None:
        self._block = b""
        self._used = 0

    def new_job_id(self, now_ms: int) -> str:
        """A UUIDv7: sorts by time, unique without coordination. Source: RFC 9562, section 5.7."""
        value = (now_ms & (1 << 48) - 1) << 80 | int.from_bytes(self._random(_ID_BYTES), "big")
        value = value & ~(0xF << 76) | 0x7 << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def new_seed(self) -> int:
        """A seed that every engine takes: 1 to 2^31 - 1."""
        # 64 random bits over 31 bits of range: no value is likelier than another by over 2^-33.
        return int.from_bytes(self._random(_SEED_BYTES), "big") % ((1 << 31) - 1) + 1

    def new_correlation_id(self) -> str:
        """A name for a call that brought none: 32 hex digits."""
        return self._random(_CORRELATION_BYTES).hex()

    def _random(self, count: int) -> bytes:
        """Bytes from the kernel that nobody has had before."""
        if len(self._block) - self._used < count:
            self._block, self._used = os.urandom(_BLOCK_BYTES), 0
        self._used += count
        return self._block[self._used - count : self._used]
