"""Pools as the core sees them: the reported snapshot and the orchestrator's own account."""

from dataclasses import dataclass, field

from orchestrator_core.core.catalog_model import DigestVerdict
from orchestrator_core.core.decision import Exclusion
from orchestrator_core.core.job import Attempt
from orchestrator_core.core.rates import TOKEN_MS_MIN, PoolRates
from orchestrator_core.core.snapshot import READY, PoolSnapshot

FORMER_REPLICAS_KEPT = 4


@dataclass(slots=True)
class Pool:
    """A registered pool.

    `as_of_ms` is the latest instant of the core's clock at which the snapshot is known to have been
    true. `own` holds the orchestrator's attempts by key, `reported` what the host says it runs.
    `unconfirmed` are attempts of which the host does not confirm that they were stopped.
    `draining` says that an operator lets it take no more, whatever the host says meanwhile, and
    `retired` that its model takes none, by the catalog; `verdict` is how its digest compares with
    the catalog's, None while that does not have its model.
    `room_idle_bytes` is what the present incarnation offers when nothing runs, None until seen;
    `former_replica_ids` are the latest incarnations before it, whose late snapshots do not count.

    What follows `former_replica_ids` is what placement reads, brought up to date by `note`: `open`
    says that the pool can take an attempt, until `open_until_ms` if nothing changes; `busy` is the
    number of its occupied
    slots, and a further job takes `first_base_ms` + `prompt_token_ms` per uncached prompt token +
    `next_token_ms` per output token (`full_token_ms` once all slots are busy). `busy_area` is the
    integral of `busy` over time until `noted_ms`, for the mean concurrency of an attempt.
    `exclusion` says why it is not open and `room_bytes` what memory is left, once somebody asked.
    """

    snapshot: PoolSnapshot
    as_of_ms: int
    connected: bool = True
    own: dict[tuple[str, int], Attempt] = field(default_factory=dict)
    reported: set[tuple[str, int]] = field(default_factory=set)
    ended_at_frame: dict[tuple[str, int], int] = field(default_factory=dict)
    refusals: int = 0
    closed_until_ms: int = 0
    unconfirmed: set[tuple[str, int]] = field(default_factory=set)
    draining: bool = False
    retired: bool = False
    verdict: DigestVerdict | None = None
    room_idle_bytes: int | None = None
    former_replica_ids: tuple[str, ...] = ()
    rates: PoolRates = field(default_factory=lambda: PoolRates(("", "", "")))
    open: bool = False
    open_until_ms: int = -1
    busy: int = 0
    first_base_ms: float = 0.0
    prompt_token_ms: float = 0.0
    next_token_ms: float = 1.0
    full_token_ms: float = 1.0
    busy_area: int = 0
    noted_ms: int = 0
    exclusion: Exclusion | None = None
    room_bytes: int | None = None
    room_counted: bool = False

    def note(self, now_ms: int, stale_after_ms: int) -> bool:
        """Brings what placement reads up to date; returns `open`. Due after every change."""
        self.busy_area += self.busy * (now_ms - self.noted_ms)
        self.noted_ms = now_ms
        snapshot, first, decode = self.snapshot, self.rates.first, self.rates.decode
        self.busy = busy = self.occupied()
        # Rates stand for full clocks. At a scale of 1 nothing changes, to the last bit.
        slower = 1.0 / snapshot.perf_scale
        self.first_base_ms, self.prompt_token_ms = first.base * slower, first.slope * slower
        token_ms, more_ms = decode.base * slower, decode.slope * slower
        slots = snapshot.slots_total
        next_ms = token_ms + more_ms * busy
        full_ms = token_ms + more_ms * (slots - 1) if slots > 1 else token_ms
        self.next_token_ms = next_ms if next_ms > TOKEN_MS_MIN else TOKEN_MS_MIN
        self.full_token_ms = full_ms if full_ms > TOKEN_MS_MIN else TOKEN_MS_MIN
        self.open = (
            busy < slots
            and snapshot.state is READY
            and not self.draining
            and not self.retired
            and self.closed_until_ms <= now_ms
            and not self.unconfirmed
            and self.fresh(now_ms, stale_after_ms)
        )
        self.open_until_ms = self.as_of_ms + stale_after_ms if self.open else -1
        self.exclusion, self.room_counted = None, False
        return self.open

    def busy_area_at(self, now_ms: int) -> int:
        """The integral of `busy` over time until now."""
        return self.busy_area + self.busy * (now_ms - self.noted_ms)

    def occupied(self) -> int:
        """Slots in use: the union of own and reported attempts, plus what others use. LO-203."""
        snapshot = self.snapshot
        foreign = snapshot.slots_total - snapshot.slots_free - len(snapshot.running)
        attempts = len(self.own.keys() | self.reported) if self.reported else len(self.own)
        return attempts + foreign if foreign > 0 else attempts

    def slots_free(self) -> int:
        """Slots that a new attempt may take; never negative."""
        return max(0, self.snapshot.slots_total - self.occupied())

    def kv_room_bytes(self) -> int | None:
        """Memory for keys and values: the lower of the host's account and the own one. LO-204.

        The host's counts what attempts use so far, the own what they were estimated to need.
        """
        if self.room_counted:
            return self.room_bytes
        self.room_bytes, self.room_counted = self._count_room(), True
        return self.room_bytes

    def _count_room(self) -> int | None:
        room = _reported_room_bytes(self.snapshot)
        if room is None:
            return None
        unseen = estimated = 0
        for key, attempt in self.own.items():
            if attempt.est_kv_bytes:
                estimated += attempt.est_kv_bytes
                if key not in self.reported:
                    unseen += attempt.est_kv_bytes
        room -= unseen
        if self.room_idle_bytes is not None:
            room = min(room, self.room_idle_bytes - estimated)
        return max(0, room)

    def could_make_room(self, needed_bytes: int) -> bool:
        """False when not even an idle pool has that much memory for keys and values."""
        return self.room_idle_bytes is None or needed_bytes <= self.room_idle_bytes

    def fresh(self, now_ms: int, stale_after_ms: int) -> bool:
        """True while the host is connected and the snapshot is young enough. ORCH-3010."""
        return self.connected and now_ms - self.as_of_ms <= stale_after_ms

    def apply(self, snapshot: PoolSnapshot, as_of_ms: int) -> None:
        """Takes a newer snapshot over; an attempt whose end was read later than it stays ended."""
        former_id, replica_id = self.snapshot.replica_id, snapshot.replica_id
        if former_id == replica_id:
            as_of_ms = max(as_of_ms, self.as_of_ms)
        else:
            kept = [known for known in self.former_replica_ids if known != replica_id]
            self.former_replica_ids = (*kept, former_id)[-FORMER_REPLICAS_KEPT:]
            self.room_idle_bytes = None
            self.refusals = self.closed_until_ms = 0
            self.unconfirmed.clear()
        self.snapshot = snapshot
        self.as_of_ms = as_of_ms
        self.ended_at_frame = {
            key: seq for key, seq in self.ended_at_frame.items() if seq > snapshot.emitted_frame_seq
        }
        self.reported = {key for key in snapshot.running if key not in self.ended_at_frame}
        self.room_counted = False
        self._learn_room()

    def forget(self, key: tuple[str, int], frame_seq: int) -> None:
        """Frees the slot of an attempt whose end was read in frame `frame_seq` (0: no frame)."""
        self.own.pop(key, None)
        self.unconfirmed.discard(key)
        self.reported.discard(key)
        self.room_counted = False
        if frame_seq > self.snapshot.emitted_frame_seq:
            self.ended_at_frame[key] = frame_seq

    def _learn_room(self) -> None:
        snapshot, room = self.snapshot, _reported_room_bytes(self.snapshot)
        idle = snapshot.slots_free == snapshot.slots_total and not snapshot.running
        if room is None or (idle and not self.own):
            self.room_idle_bytes = room
        elif self.room_idle_bytes is not None:
            self.room_idle_bytes = max(self.room_idle_bytes, room)


def _reported_room_bytes(snapshot: PoolSnapshot) -> int | None:
    room = snapshot.kv_free_bytes
    # Where every slot has its memory already, free memory says nothing about a job's room.
    return snapshot.vram_free_bytes if room is None and not snapshot.kv_preallocated else room
