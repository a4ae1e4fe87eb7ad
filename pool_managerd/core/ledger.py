"""What the pools of a host take of each memory: estimated at first, then as seen. ORCH-3039.

One entry per pool and memory, so it is bounded by the configuration. The caller removes what ended.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pool_managerd.core.fit import Claim


@dataclass(frozen=True, slots=True)
class Entry:
    """Bytes of one pool in one memory: what was expected, and what it took, once that is known."""

    estimated: int
    taken: int | None = None


class Ledger:
    """Claims by pool and memory."""

    def __init__(self) -> None:
        self._pools: dict[str, dict[str, Entry]] = {}
        self._loading: set[str] = set()

    def claim(self, pool_id: str, estimated: Mapping[str, int]) -> None:
        """Notes what an engine will take, before it is started."""
        self._pools[pool_id] = {memory: Entry(size) for memory, size in estimated.items()}
        self._loading.add(pool_id)

    def settle(self, pool_id: str, taken: Mapping[str, int]) -> None:
        """Notes that the engine has loaded, and what it took where that is known."""
        entries = self._pools.setdefault(pool_id, {})
        for memory, size in taken.items():
            estimated = entries[memory].estimated if memory in entries else 0
            entries[memory] = Entry(estimated, size)
        self._loading.discard(pool_id)

    def release(self, pool_id: str) -> None:
        """Notes that the engine is gone. Without effect when it has no claim."""
        self._pools.pop(pool_id, None)
        self._loading.discard(pool_id)

    def entries(self, pool_id: str) -> Mapping[str, Entry]:
        """What is noted of a pool, by memory."""
        return self._pools.get(pool_id, {})

    def loading_beside(self, pool_id: str, memories: frozenset[str]) -> bool:
        """True while an engine of another pool loads into one of `memories`."""
        return any(
            other != pool_id and memories & self._pools.get(other, {}).keys()
            for other in self._loading
        )

    def beside(self, pool_id: str) -> dict[str, tuple[Claim, ...]]:
        """The claims of all other pools, by memory. O(pools)."""
        found: dict[str, tuple[Claim, ...]] = {}
        for memory, claim in self._claims(without=pool_id):
            found[memory] = (*found.get(memory, ()), claim)
        return found

    def claimed(self, memory: str) -> int:
        """Bytes of one memory that all pools claim. O(pools)."""
        return sum(claim.bytes for name, claim in self._claims() if name == memory)

    def _claims(self, without: str = "") -> Iterator[tuple[str, Claim]]:
        for pool_id, entries in self._pools.items():
            if pool_id == without:
                continue
            for memory, entry in entries.items():
                size = entry.estimated if entry.taken is None else entry.taken
                yield memory, Claim(size, pool_id in self._loading)
