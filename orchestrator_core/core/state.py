"""The tables of the core. Mutable on purpose: one owner, one step at a time."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.decision import EXCLUSIONS_KEPT, Exclusion
from orchestrator_core.core.effects import Effect, Receipt
from orchestrator_core.core.feasibility import static_shortfalls
from orchestrator_core.core.job import Attempt, Job, JobSpec, Needs
from orchestrator_core.core.placement import pool_shortfalls
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.prediction import Predictor
from orchestrator_core.core.queue import Queue
from orchestrator_core.core.timers import TimerKind, Timers

DEPARTURES_KEPT = 64


@dataclass(slots=True)
class Host:
    """A GPU host. `link_id` names its open Dispatch stream, None while there is none."""

    host_id: str
    link_id: int | None
    pool_ids: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Remembered:
    """The first answer to a request id. ORCH-3024."""

    job_id: str
    digest: str
    receipt: Receipt
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Feasible:
    """Pools that could ever serve some needs, in order of id, and their slots together.

    `infeasible` tells of the other pools what they lack, the first few by id.
    """

    pool_ids: dict[str, None]
    slots_total: int
    infeasible: tuple[Exclusion, ...]


@dataclass(slots=True)
class State:
    """Everything that the core remembers.

    `available` holds the pools that could take an attempt at this moment, `unavailable` the others
    with the reason as of their last change. Dicts stand in for sets where the order of iteration
    could reach an effect: string sets iterate differently from run to run. The tables that give up
    their oldest entry are ordered ones, where that costs O(1). `on_placement` is told of a job that
    is about to be placed, the pools kept for others and the time; only explanations set it.
    """

    config: CoreConfig
    queue: Queue = field(default_factory=Queue)
    timers: Timers = field(default_factory=Timers)
    predictor: Predictor = field(default_factory=Predictor)
    jobs: dict[str, Job] = field(default_factory=dict)
    ended: OrderedDict[str, None] = field(default_factory=OrderedDict)
    pools: dict[str, Pool] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    attempts: dict[tuple[str, int], Attempt] = field(default_factory=dict)
    available: dict[str, None] = field(default_factory=dict)
    unavailable: dict[str, Exclusion] = field(default_factory=dict)
    remembered: OrderedDict[tuple[str, str], Remembered] = field(default_factory=OrderedDict)
    sessions: OrderedDict[str, tuple[str, int]] = field(default_factory=OrderedDict)
    displaced: dict[str, Job] = field(default_factory=dict)
    service_ms: dict[str, float] = field(default_factory=dict)
    departures_ms: deque[int] = field(default_factory=lambda: deque(maxlen=DEPARTURES_KEPT))
    feasible_cache: dict[Needs, Feasible] = field(default_factory=dict)
    next_seq: int = 1
    interactive_since_batch: int = 0
    draining: bool = False
    effects: list[Effect] = field(default_factory=list)
    on_placement: Callable[[Job, dict[str, str], int], None] | None = None

    def emit(self, effect: Effect) -> None:
        """Adds an effect to the present step's answer."""
        self.effects.append(effect)

    def feasible(self, needs: Needs) -> Feasible:
        """Pools that could ever serve `needs`; cached until the fleet changes. ORCH-3010."""
        known = self.feasible_cache.get(needs)
        if known is None:
            if len(self.feasible_cache) >= self.config.lanes_max:
                self.feasible_cache.clear()
            known = self.feasible_cache[needs] = self._feasible(needs)
        return known

    def _feasible(self, needs: Needs) -> Feasible:
        fitting: dict[str, None] = {}
        others: list[Exclusion] = []
        for pool_id in sorted(self.pools):
            shortfalls = static_shortfalls(needs, self.pools[pool_id].snapshot)
            if not shortfalls:
                fitting[pool_id] = None
            elif len(others) < EXCLUSIONS_KEPT:
                others.append(Exclusion(pool_id, shortfalls))
        slots = sum(self.pools[pool_id].snapshot.slots_total for pool_id in fitting)
        return Feasible(fitting, slots, tuple(others))

    def refresh(self, pool: Pool, now_ms: int) -> None:
        """Notes whether a pool can take an attempt now, or why not. Due after every change."""
        pool_id = pool.snapshot.pool_id
        shortfalls = pool_shortfalls(pool, now_ms, self.config.stale_after_ms)
        if shortfalls:
            self.available.pop(pool_id, None)
            self.unavailable[pool_id] = Exclusion(pool_id, shortfalls)
        else:
            self.unavailable.pop(pool_id, None)
            self.available[pool_id] = None
            stale_ms = pool.as_of_ms + self.config.stale_after_ms + 1
            self.timers.set(TimerKind.POOL_STALE, pool_id, stale_ms)

    def remember(self, spec: JobSpec, receipt: Receipt, accepted_ms: int, now_ms: int) -> None:
        """Keeps the first answer to a request id for a day; beyond the bound the oldest goes."""
        expires_ms = accepted_ms + self.config.idempotency_ttl_ms
        if not spec.request_id or expires_ms <= now_ms:
            return
        key = (spec.identity, spec.request_id)
        self.remembered.pop(key, None)
        if len(self.remembered) >= self.config.idempotency_max:
            self.remembered.popitem(last=False)
        self.remembered[key] = Remembered(spec.job_id, spec.digest, receipt, expires_ms)

    def warm_pool_id(self, session_id: str, now_ms: int) -> str:
        """Pool that served a session last, while the session lives; else empty. ORCH-3009."""
        pool_id, expires_ms = self.sessions.get(session_id, ("", 0))
        return pool_id if expires_ms > now_ms else ""

    def touch_session(self, session_id: str, pool_id: str, now_ms: int) -> None:
        """Remembers where a session was served; the least recently used goes first. ORCH-3021."""
        if not session_id:
            return
        self.sessions.pop(session_id, None)
        if len(self.sessions) >= self.config.sessions_max:
            self.sessions.popitem(last=False)
        self.sessions[session_id] = (pool_id, now_ms + self.config.session_ttl_ms)
