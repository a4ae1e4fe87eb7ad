"""Ids and seeds: the randomness that enters the core as event data."""

import os

# Random bytes are asked for in blocks: the kernel's answer costs the same for 2 KiB as for ten.
_BLOCK_BYTES = 2_048
_ID_BYTES, _SEED_BYTES = 10, 8

_block = b""
_used = 0


def new_job_id(now_ms: int) -> str:
    """A UUIDv7: sorts by time, unique without coordination. Source: RFC 9562, section 5.7."""
    value = (now_ms & (1 << 48) - 1) << 80 | int.from_bytes(_random(_ID_BYTES), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_seed() -> int:
    """A seed that every engine takes: 1 to 2^31 - 1."""
    # 64 random bits over 31 bits of range: no value is likelier than another by more than 2^-33.
    return int.from_bytes(_random(_SEED_BYTES), "big") % ((1 << 31) - 1) + 1


def _random(count: int) -> bytes:
    """Bytes from the kernel that nobody has had before. Belongs to the event loop's thread."""
    global _block, _used  # noqa: PLW0603 - one pool for the process, as in the kernel
    if len(_block) - _used < count:
        _block, _used = os.urandom(_BLOCK_BYTES), 0
    _used += count
    return _block[_used - count : _used]


def _forget() -> None:
    global _used  # noqa: PLW0603
    _used = len(_block)


# What is left of the block belongs to the parent.
os.register_at_fork(after_in_child=_forget)
