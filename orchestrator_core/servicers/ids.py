"""Ids and seeds: the randomness that enters the core as event data."""

import secrets
import uuid


def new_job_id(now_ms: int) -> str:
    """A UUIDv7: sorts by time, unique without coordination. Source: RFC 9562, section 5.7."""
    value = (now_ms & (1 << 48) - 1) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def new_seed() -> int:
    """A seed that every engine takes: 1 to 2^31 - 1."""
    return secrets.randbelow((1 << 31) - 1) + 1
