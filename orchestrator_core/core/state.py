"""The tables of the core. Mutable on purpose: one owner, one step at a time."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator_core.core.catalog import Catalog
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.decision import EXCLUSIONS_KEPT, Exclusion
from orchestrator_core.core.drain import DrainRate
from orchestrator_core.core.effects import Effect, Receipt, Remembered
from orchestrator_core.core.feasibility import static_shortfalls
from orchestrator_core.core.job import Attempt, Job
from orchestrator_core.core.outlook import Outlook, Traffic, outlook
from orchestrator_core.core.pool import Pool
from orchestrator_core.core.prediction import Predictor
from orchestrator_core.core.queue import Queue
from orchestrator_core.core.records import PoolDrainRecord
from orchestrator_core.core.session import Sessions
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.core.throttle import Throttle
from orchestrator_core.core.timers import TimerKind, Timers


@dataclass(slots=True)
class Host:
    """A GPU host. `link_id` names its open Dispatch stream, None while there is none.

    `kept` are the attempts of ended jobs whose output it holds, in order of their end, `kept_max`
    how many these may be, None without a bound. `boot_id` names the run of its pool manager that
    registered last.
    """

    host_id: str
    link_id: int | None
    boot_id: str = ""
    pool_ids: dict[str, None] = field(default_factory=dict)
    kept: OrderedDict[tuple[str, int], None] = field(default_factory=OrderedDict)
    kept_max: int | None = None


@dataclass(frozen=True, slots=True)
class Feasible:
    """Pools that could ever serve some needs, by id in order of id.

    `infeasible` tells of the other pools what they lack, the first few by id. `ctx_sizes` are the
    different contexts of the feasible ones in tokens, ascending; empty while one is not known.
    """

    pools: dict[str, Pool]
    infeasible: tuple[Exclusion, ...]
    ctx_sizes: tuple[int, ...] = ()


@dataclass(slots=True)
class State:
    """Everything that the core remembers.

    `available` holds the pools that could take an attempt at this moment. `fleet` counts changes
    of what pools can do at all, as opposed to whether they are busy. `ended` and `ended_unrun` hold
    the ended jobs that are kept, in order of their end; of the latter none had an attempt. `drains`
    holds the pools that an operator drains, also while they are not registered. `served`
    holds the tokens that each identity was served, for fairness between them. `stepping` is True
    within a step. `on_placement` is told of a job that is about to be placed, the pools kept for
    others and the time; only explanations set it. Dicts stand in for sets where the order of
    iteration could reach an effect: string sets iterate differently from run to run. The tables
    that give up their oldest entry are ordered ones, where that costs O(1). `disproof` is the last
    job that was let in although it was predicted to be late, and when.
    """

    config: CoreConfig
    queue: Queue = field(init=False)
    timers: Timers = field(default_factory=Timers)
    predictor: Predictor = field(default_factory=Predictor)
    jobs: dict[str, Job] = field(default_factory=dict)
    ended: OrderedDict[str, None] = field(default_factory=OrderedDict)
    ended_unrun: OrderedDict[str, None] = field(default_factory=OrderedDict)
    pools: dict[str, Pool] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    attempts: dict[tuple[str, int], Attempt] = field(default_factory=dict)
    available: dict[str, Pool] = field(default_factory=dict)
    remembered: OrderedDict[tuple[str, str], Remembered] = field(default_factory=OrderedDict)
    sessions: Sessions = field(default_factory=Sessions)
    drains: dict[str, PoolDrainRecord] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=Catalog)
    displaced: dict[str, Job] = field(default_factory=dict)
    outlooks: dict[Needs, Outlook] = field(default_factory=dict)
    served: OrderedDict[str, float] = field(default_factory=OrderedDict)
    feasible_cache: dict[Needs, Feasible] = field(default_factory=dict)
    next_seq: int = 1
    fleet: int = 0
    hosts_due_ms: int = 0
    batch_credit: int = 0
    draining: bool = False
    stepping: bool = False
    effects: list[Effect] = field(default_factory=list)
    on_placement: Callable[[Job, Mapping[str, str], int], None] | None = None
    drain: DrainRate = field(default_factory=DrainRate)
    throttle: Throttle = field(init=False)
    disproof: tuple[str, int] = ("", 0)

    def __post_init__(self) -> None:
        """Makes the parts that need the configuration."""
        self.throttle = Throttle(self.config.throttle)
        self.queue = Queue(per_identity=self.config.token_fairness)

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
        fitting: dict[str, Pool] = {}
        others: list[Exclusion] = []
        for pool_id in sorted(self.pools):
            pool = self.pools[pool_id]
            shortfalls = static_shortfalls(needs, pool.snapshot)
            if not shortfalls:
                fitting[pool_id] = pool
            elif len(others) < EXCLUSIONS_KEPT:
                others.append(Exclusion(pool_id, shortfalls))
        sizes = {pool.snapshot.ctx_max for pool in fitting.values()}
        # An engine that is starting does not know its context yet, and says 0.
        known = tuple(sorted(sizes)) if 0 not in sizes else ()
        return Feasible(fitting, tuple(others), known)

    def fleet_changed(self) -> None:
        """What pools can do at all is not what it was: forgets what was derived from it."""
        self.fleet += 1
        self.feasible_cache.clear()

    def outlook(self, needs: Needs) -> Outlook:
        """What a lane can expect of its pools; made anew when enough was learned. O(tiers).

        Kept only within a step: a question must not change what is decided later.
        """
        known = self.outlooks.get(needs)
        if known is not None and not known.due(self.predictor.learned, self.fleet):
            return known
        made = outlook(
            list(self.feasible(needs).pools.values()),
            self.predictor.known_model(needs.model_id),
            self.predictor.learned,
            self.fleet,
        )
        if self.stepping:
            if known is None and len(self.outlooks) >= self.config.lanes_max:
                del self.outlooks[next(iter(self.outlooks))]
            self.outlooks[needs] = made
        return made

    def traffic(self, model_id: str, now_ms: int) -> Traffic:
        """Who competes for the pools of a model."""
        stats = self.predictor.known_model(model_id)
        return Traffic(self.queue.waiting_for_model(model_id), stats.demand_per_ms(now_ms))

    def refresh(self, pool: Pool, now_ms: int) -> None:
        """Notes whether a pool can take an attempt now. Due after every change of it."""
        pool_id = pool.snapshot.pool_id
        if pool.note(now_ms, self.config.stale_after_ms):
            self.available[pool_id] = pool
            # Each report moves the instant; who comes too early finds the pool open and waits on.
            self.timers.set_by(TimerKind.POOL_STALE, pool_id, pool.open_until_ms + 1)
        else:
            self.available.pop(pool_id, None)

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
