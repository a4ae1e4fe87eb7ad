"""Whether an engine fits into the memory of its devices, and what to say when it does not.

ORCH-3002, ORCH-3003, LO-204.

    available = min(free - what engines that still load will take, total - claims of other pools)

Free memory is not enough: other programs use the device, and an engine of this host that has just
been started has not taken its share yet. Everything is integers; a memory whose size is not known
is not judged. Processors and devices with unified memory share the host's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

HOST = "host"
"""The memory of the host, as a place beside the ids of devices."""

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that an engine takes in one memory, by purpose.

    `context` is what driver and libraries take for the process itself.
    """

    weights: int = 0
    kv: int = 0
    graph: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.graph + self.context

    def plus(self, other: "Need") -> "Need":
        """Both together."""
        return Need(
            self.weights + other.weights,
            self.kv + other.kv,
            self.graph + other.graph,
            self.context + other.context,
        )


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Layers of a model in a row that go to one place, counted from 0. ORCH-3202.

    `count` may be 0 where only the output goes there.
    """

    place: str
    first: int
    count: int
    output: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an engine will take, by place: ids of devices and `HOST`.

    `notes` say where a bound stands in for what is not known; `stated`: an operator said it.
    `layers` is what goes where, empty where that is not the engine's way or not known.
    """

    needs: Mapping[str, Need]
    notes: tuple[str, ...] = ()
    stated: bool = False
    layers: tuple[LayerRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """A place for an engine: its name for people, and what is known of its memory, bytes.

    `memory` is the key of the memory that it uses: its own id, or `HOST` where it shares that.
    """

    name: str
    memory: str
    total: int | None = None
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What one pool takes of one memory. `loading`: some of it may not be taken yet."""

    bytes: int
    loading: bool


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One memory that is too small: what is needed, what there is, and why no more."""

    place: str
    name: str
    need: Need
    available: int
    total: int | None
    claimed: int

    @property
    def passing(self) -> bool:
        """True when only other programs are in the way, which may end by themselves."""
        return self.total is None or self.need.total + self.claimed <= self.total

    def sentence(self, advice: str) -> str:
        """One sentence for people; `advice` says what to change."""
        parts = ", ".join(
            f"{word} {human_bytes(size)}"
            for word, size in (
                ("weights", self.need.weights),
                ("keys and values", self.need.kv),
                ("computation", self.need.graph),
                ("the process itself", self.need.context),
            )
            if size
        )
        of_total = f" of {human_bytes(self.total)}" if self.total is not None else ""
        others = (
            f" (other pools of this host claim {human_bytes(self.claimed)})" if self.claimed else ""
        )
        lacking = human_bytes(self.need.total - self.available)
        return (
            f"{self.name} lacks {lacking} of memory: {human_bytes(self.need.total)} are needed "
            f"({parts}) and {human_bytes(max(0, self.available))}{of_total} are available{others}; "
            f"{advice}"
        )


def merged(needs: Mapping[str, Need], rooms: Mapping[str, Room]) -> dict[str, Need]:
    """What is needed of each memory: of places that share one, all of them together."""
    found: dict[str, Need] = {}
    for place, need in needs.items():
        memory = rooms[place].memory if place in rooms else place
        found[memory] = found.get(memory, Need()).plus(need)
    return found


def available_bytes(room: Room, claims: tuple[Claim, ...]) -> int | None:
    """Bytes that a new engine may count on beside `claims`; None when nothing is known.

    Below 0 when more is claimed than there is.
    """
    claimed = sum(claim.bytes for claim in claims)
    loading = sum(claim.bytes for claim in claims if claim.loading)
    bounds = [
        known - taken
        for known, taken in ((room.free, loading), (room.total, claimed))
        if known is not None
    ]
    return min(bounds, default=None)


def shortfalls(
    estimate: Estimate, rooms: Mapping[str, Room], claims: Mapping[str, tuple[Claim, ...]]
) -> tuple[Shortfall, ...]:
    """Every memory that is too small, in order of place. ORCH-3003.

    `claims` are those of the other pools, by memory.
    """
    by_memory = {room.memory: room for place, room in rooms.items() if room.memory == place}
    found = []
    for memory, need in sorted(merged(estimate.needs, rooms).items()):
        room = by_memory.get(memory)
        if room is None:
            continue
        taken = claims.get(memory, ())
        available = available_bytes(room, taken)
        if available is not None and need.total > available:
            claimed = sum(claim.bytes for claim in taken)
            found.append(Shortfall(memory, room.name, need, available, room.total, claimed))
    return tuple(found)


def human_bytes(count: int) -> str:
    """A size for people: one decimal from a mebibyte on."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
