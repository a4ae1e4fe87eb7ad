"""Which of a llama-server's slots each generation holds.

The server names the slot only in the last frame, so the adapter chooses it (`id_slot`). That makes
a cancel verifiable. The choice is the one that the server would make: the slot whose last prompt
shares the longest beginning with the new one, because it still has those keys and values.
"""

from dataclasses import dataclass, field

from pool_managerd.engines.http_client import Progress

_COMPARED_CHARS = 32_768
_STEP_CHARS = 64


@dataclass(slots=True)
class SlotLease:
    """One generation's hold on a slot."""

    request_id: str
    slot: int
    progress: Progress = field(default_factory=Progress)


class SlotTable:
    """The slots of one engine. Remembers the first 32,768 characters of each slot's last prompt."""

    def __init__(self, slots_total: int) -> None:
        if slots_total < 1:
            raise ValueError("an engine has at least one slot")
        self._leases: dict[str, SlotLease] = {}
        # Least recently used first; the value is the beginning of the slot's last prompt.
        self._idle: dict[int, str] = dict.fromkeys(range(slots_total), "")
        self._prompts: dict[int, str] = {}

    def acquire(self, request_id: str, prompt: str) -> SlotLease | None:
        """Leases an idle slot: the warmest, else the longest unused; None when all are taken.

        O(slots * shared beginning / 64).
        """
        assert request_id not in self._leases, "a request holds one slot"
        if not self._idle:
            return None
        slot = max(self._idle, key=lambda slot: _shared_chars(self._idle[slot], prompt))
        del self._idle[slot]
        self._prompts[slot] = prompt[:_COMPARED_CHARS]
        lease = SlotLease(request_id, slot)
        self._leases[request_id] = lease
        return lease

    def lease_of(self, request_id: str) -> SlotLease | None:
        """Returns the lease of a generation, or None when it holds no slot."""
        return self._leases.get(request_id)

    def release(self, lease: SlotLease) -> None:
        """Gives the slot back. Idempotent."""
        if self._leases.get(lease.request_id) is lease:
            del self._leases[lease.request_id]
            self._idle[lease.slot] = self._prompts.pop(lease.slot)


def _shared_chars(one: str, other: str) -> int:
    """Returns the length of the common beginning, rounded down to steps of 64 characters."""
    shared = 0
    limit = min(len(one), len(other))
    while (
        shared < limit
        and one[shared : shared + _STEP_CHARS] == other[shared : shared + _STEP_CHARS]
    ):
        shared += _STEP_CHARS
    return min(shared, limit)
