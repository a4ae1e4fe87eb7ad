"""What every observation is."""

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One observation. `at_ms` is when it was made."""

    at_ms: int
