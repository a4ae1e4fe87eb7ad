"""Counts and distributions of what happened to jobs, and gauges of the fleet. ORCH-3028.

Counts add up in every export: over all labels, enqueued = finished by outcome + live. Jobs found
in the journal at start count as enqueued. When the journal refuses a batch, its accepts end as
`retracted`, and jobs that were dropped for them and come back count as enqueued again.
"""

from collections.abc import Sequence

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.core.config import QueuePolicy
from orchestrator_core.core.decision import Decision
from orchestrator_core.core.effects import JobEnded
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.core.snapshot import PoolState
from orchestrator_core.core.spec import JobSpec, Priority, StartMode
from orchestrator_core.core.states import JobState
from orchestrator_core.telemetry import job_rows as rows
from orchestrator_core.telemetry.device_metrics import DeviceMetrics
from orchestrator_core.telemetry.fleet import FleetView, PoolGauges
from orchestrator_core.telemetry.instruments import OTHER, Board, Counter, Gauge, Histogram
from orchestrator_core.telemetry.names import SERVICE
from orchestrator_core.telemetry.service_metrics import ServiceFacts, ServiceMetrics
from orchestrator_core.telemetry.tracing import service_resource
from orchestrator_core.telemetry.tracked import Tracked
from orchestrator_core.wire.pools import state_of

# Above the product of every budget that meets in one metric: our budgets cut off, not the SDK's.
SERIES_MAX = 65_536
CARDINALITY: dict[type, int] = {
    sdk.ObservableCounter: SERIES_MAX,
    sdk.ObservableGauge: SERIES_MAX,
}
# Refusals with unknown engine names must not cost a walk over all pools each.
ENGINES_REREAD_MS = 1_000
DISCONNECTED = "disconnected"
# That it waits before the next start says nothing about the last one.
_CAUSES: dict[int, str] = {
    number: name.removeprefix("POOL_STATE_REASON_").lower()
    for name, number in snapshot_pb2.PoolStateReason.items()
    if number not in (0, snapshot_pb2.POOL_STATE_REASON_BACKOFF)
}
_POOL_STATES = (*(state.value for state in PoolState), DISCONNECTED)

_REJECTIONS = ("queue_full", "invalid_request", "policy_violation")
_TENTHS = 10
# Labels of refusals that a longer queue or another slot would have helped.
_QUEUE_FULL = frozenset({*(policy.value for policy in QueuePolicy), "lanes"})
_INVALID = frozenset(
    {
        Reason.INVALID_PARAMS,
        Reason.INCOMPATIBLE_MODEL,
        Reason.INCOMPATIBLE_ENGINE,
        Reason.INCOMPATIBLE_DEVICE_MASK,
        Reason.MODEL_UNKNOWN,
        Reason.MODEL_RETIRED,
        Reason.DUPLICATE,
        Reason.DEADLINE,
    }
)


class Metrics:
    """All instruments of the contract. Without readers nothing is exported and little is spent."""

    def __init__(self, readers: Sequence[MetricReader] = ()) -> None:
        self._provider = (
            MeterProvider(readers, resource=service_resource(), shutdown_on_exit=False)
            if readers
            else None
        )
        provider = self._provider or NoOpMeterProvider()
        self.board = board = Board(provider.get_meter(SERVICE))
        for reader in readers:
            board.distributions.join(reader)
        self._make(board)
        self.service = ServiceMetrics(board)
        self._devices = DeviceMetrics(board)
        self._engines: set[str] = set()
        self._engines_ms: int | None = None
        self._waiting_keys: dict[tuple[str, ...], None] = {}
        self._replicas: dict[str, str] = {}
        self._given_up: dict[str, str] = {}

    def _make(self, board: Board) -> None:
        self._enqueued = Counter(board, rows.ENQUEUED)
        self._started = Counter(board, rows.STARTED)
        self._canceled = Counter(board, rows.CANCELED)
        self._rejected = Counter(board, rows.REJECTED)
        self._finished = Counter(board, rows.FINISHED)
        self._backpressure = Counter(board, rows.BACKPRESSURE)
        self._tokens_in = Counter(board, rows.TOKENS_IN)
        self._tokens_out = Counter(board, rows.TOKENS_OUT)
        self._failovers = Counter(board, rows.FAILOVERS)
        self._orchd_enqueued = Counter(board, rows.ORCHD_ENQUEUED)
        self._orchd_rejected = Counter(board, rows.ORCHD_REJECTED)
        self._admission_latency = Histogram(board, rows.ADMISSION_LATENCY)
        self._first_token = Histogram(board, rows.FIRST_TOKEN)
        self._decode = Histogram(board, rows.DECODE)
        self._queue_wait = Histogram(board, rows.QUEUE_WAIT)
        self._prediction_error = Histogram(board, rows.PREDICTION_ERROR)
        self._snapshot_age = Histogram(board, rows.SNAPSHOT_AGE)
        self._on_time = Counter(board, rows.ON_TIME)
        self._restarts = Counter(board, rows.ENGINE_RESTARTS)
        self._live = Gauge(board, rows.LIVE)
        self._pool_slots = Gauge(board, rows.POOL_SLOTS)
        self._pool_speed = Gauge(board, rows.POOL_SPEED)
        self._queue_depth = Gauge(board, rows.QUEUE_DEPTH)
        self._orchd_depth = Gauge(board, rows.ORCHD_DEPTH)
        self._pool_state = Gauge(board, rows.POOL_STATE)
        self._pool_info = Gauge(board, rows.POOL_INFO)
        self._kv_usage = Gauge(board, rows.KV_USAGE)
        self._gpu_utilization = Gauge(board, rows.GPU_UTILIZATION)
        self._vram_used = Gauge(board, rows.VRAM_USED)
        # A rate sees no first increment of a series that is born with it: what alerts look at is
        # there from the start, and of a pool from its first report.
        self._await_ends("", "")
        for outcome in ("accepted", "rejected"):
            self._orchd_enqueued.add(0, "", outcome)
        for kind in _REJECTIONS:
            self._orchd_rejected.add(0, "", kind)
        for tenth in range(_TENTHS):
            for met in ("yes", "no"):
                self._on_time.add(0, _tenth(tenth / _TENTHS), met)

    # --- what happened

    def accepted(self, tracked: Tracked) -> None:
        """A request became a job."""
        self.found(tracked)
        self._orchd_enqueued.add(1, "", "accepted")

    def found(self, tracked: Tracked) -> None:
        """A live job came in without a request: from the journal, or back after being dropped."""
        needs = tracked.job.spec.needs
        self._enqueued.add(1, needs.engine, needs.engine_version, "", "", tracked.priority)

    def durable(self, spec: JobSpec, latency_ms: float) -> None:
        """A job's accept was answered, `latency_ms` after its receipt."""
        self._admission_latency.record(latency_ms, spec.needs.engine, spec.priority.name.lower())

    def rejected(self, refusal: Refusal, engine: str, core: Core | None, now_ms: int) -> None:
        """A request was refused. `engine` comes from the request and need not exist."""
        engine = self._known_engine(engine, core, now_ms)
        reason = refusal.reason
        self._rejected.add(1, engine, reason.value)
        self._orchd_enqueued.add(1, "", "rejected")
        self._orchd_rejected.add(1, "", _rejection_kind(refusal))
        if reason is Reason.ADMISSION_REJECT:
            self._backpressure.add(1, engine, refusal.policy_label)

    def placed(self, tracked: Tracked, decision: Decision, now_ms: int) -> None:
        """A pool was chosen."""
        if tracked.queued_ms is not None:
            self._queue_wait.record(now_ms - tracked.queued_ms, decision.pool_id)
        if decision.candidates:
            self._snapshot_age.record(decision.candidates[0].snapshot_age_ms, decision.pool_id)

    def started(self, tracked: Tracked, now_ms: int) -> None:
        """The first attempt of a job was taken up."""
        self._started.add(1, *_replica(tracked), tracked.priority)
        predicted_ms = tracked.job.predicted_start_ms
        if predicted_ms is not None:
            error_ms = now_ms - tracked.job.accepted_ms - predicted_ms
            self._prediction_error.record(abs(error_ms), tracked.engine, "start", _late(error_ms))

    def lost(self, tracked: Tracked, pool_id: str) -> None:
        """An attempt was lost and is tried again."""
        self._failovers.add(1, tracked.engine, pool_id, _mode(tracked.job.next_mode))

    def ended(self, tracked: Tracked, effect: JobEnded, now_ms: int) -> None:
        """A job reached its terminal state."""
        usage, state = effect.usage, effect.state
        if tracked.told_chance is not None:
            deadline_ms = tracked.job.spec.deadline_ms
            met = state is JobState.FINISHED and (deadline_ms is None or now_ms <= deadline_ms)
            self._on_time.add(1, _tenth(tracked.told_chance), "yes" if met else "no")
        latency = (tracked.engine, tracked.engine_version, tracked.pool_id, tracked.priority)
        self._finished.add(1, tracked.engine, tracked.pool_id, state.value)
        if usage.tokens_in is not None:
            self._tokens_in.add(usage.tokens_in, *_replica(tracked))
        if usage.tokens_out is not None:
            self._tokens_out.add(usage.tokens_out, *_replica(tracked))
        if usage.first_token_ms is not None:
            self._first_token.record(usage.first_token_ms, *latency)
        if state is JobState.CANCELLED:
            self._canceled.add(1, *_replica(tracked), effect.why)
        elif state is JobState.DROPPED:
            error = effect.outcome.error
            label = error.policy_label if error else ""
            self._backpressure.add(1, tracked.engine, label)
        elif state is JobState.FINISHED:
            self._finished_well(tracked, effect, latency, now_ms)

    def reported(self, pool: snapshot_pb2.PoolSnapshot) -> None:
        """A host reported a pool; a new incarnation of one that is known is a restart. ORCH-3053.

        Why the one before was given up is what its host said of it first.
        """
        known, reason = self._replicas.get(pool.pool_id), pool.state_reason
        if known == pool.replica_id:
            if not reason:
                self._given_up.pop(pool.pool_id, None)
            elif reason in _CAUSES:
                self._given_up.setdefault(pool.pool_id, _CAUSES[reason])
            return
        why = self._given_up.pop(pool.pool_id, "unknown")
        self._replicas[pool.pool_id] = pool.replica_id
        if known is None:
            self._begin(pool.engine, pool.pool_id)
        else:
            self._restarts.add(1, pool.engine, pool.pool_id, why)

    def _begin(self, engine: str, pool_id: str) -> None:
        for cause in ("unknown", *_CAUSES.values()):
            self._restarts.add(0, engine, pool_id, cause)
        for mode in StartMode:
            self._failovers.add(0, engine, pool_id, _mode(mode))
        self._await_ends(engine, pool_id)
        self._await_ends(engine, "")

    def _await_ends(self, engine: str, pool_id: str) -> None:
        for state in (JobState.FINISHED, JobState.FAILED):
            self._finished.add(0, engine, pool_id, state.value)

    def retracted(self, tracked: Tracked) -> None:
        """The journal refused an accept."""
        self._finished.add(1, tracked.engine, "", "retracted")

    def _finished_well(
        self, tracked: Tracked, effect: JobEnded, latency: tuple[str, ...], now_ms: int
    ) -> None:
        if effect.usage.decode_time_ms is not None:
            self._decode.record(effect.usage.decode_time_ms, *latency)
        predicted_ms = tracked.job.predicted_end_ms
        if predicted_ms is not None:
            error_ms = now_ms - tracked.job.accepted_ms - predicted_ms
            self._prediction_error.record(abs(error_ms), tracked.engine, "end", _late(error_ms))

    def _known_engine(self, engine: str, core: Core | None, now_ms: int) -> str:
        """Engine names in refusals are the client's words: only those of pools become labels."""
        if not engine or engine in self._engines:
            return engine
        if core is not None and (
            self._engines_ms is None or now_ms - self._engines_ms >= ENGINES_REREAD_MS
        ):
            self._engines_ms = now_ms
            self._engines = {pool.snapshot.engine for pool in core.pools.values()}
        return engine if engine in self._engines else OTHER

    # --- gauges

    def sample(
        self,
        core: Core,
        fleet: FleetView,
        facts: ServiceFacts | None = None,
    ) -> None:
        """Reads all gauges and shows exports the present counts. O(pools + lanes + running jobs).

        On the event loop, once per scrape or export.
        """
        self._sample_queue(core)
        self._sample_live(core)
        self._sample_pools(core)
        self._sample_reported(list(fleet.pools()))
        self.service.sample(core, facts or ServiceFacts())
        self.board.freeze()

    def _sample_live(self, core: Core) -> None:
        """Counted where the core keeps them, not here: else the sums could not but close."""
        states = [core.jobs[job_id].state for job_id, _ in core.attempts]
        counts = {state: states.count(state) for state in (JobState.DISPATCHED, JobState.RUNNING)}
        counts[JobState.QUEUED] = core.queue_depth()
        self._live.replace(((state.value,), count) for state, count in counts.items())

    def _sample_pools(self, core: Core) -> None:
        pools = core.pools.items()
        for pool_id in self._replicas.keys() - core.pools.keys():
            del self._replicas[pool_id]
            self._given_up.pop(pool_id, None)
        self._pool_state.replace(
            ((pool_id, state), float(state == told))
            for pool_id, told in ((pool_id, state_of(pool).lower()) for pool_id, pool in pools)
            for state in _POOL_STATES
        )
        self._pool_info.replace(
            ((pool_id, shown.host_id, shown.engine, shown.model_id), 1.0)
            for pool_id, shown in ((pool_id, pool.snapshot) for pool_id, pool in pools)
        )
        busy = {pool_id: min(pool.occupied(), pool.snapshot.slots_total) for pool_id, pool in pools}
        self._pool_slots.replace(
            slots
            for pool_id, pool in pools
            for slots in (
                ((pool_id, "busy"), busy[pool_id]),
                ((pool_id, "free"), pool.snapshot.slots_total - busy[pool_id]),
            )
        )
        self._pool_speed.replace(((pool_id,), core.tokens_per_s(pool)) for pool_id, pool in pools)

    def _sample_reported(self, pools: Sequence[PoolGauges]) -> None:
        self._kv_usage.replace(
            (_replica_of(pool), pool.kv_cache_usage_ratio)
            for pool in pools
            if pool.kv_cache_usage_ratio is not None
        )
        self._gpu_utilization.replace(
            ((*_replica_of(pool), device.device), device.utilization_ratio)
            for pool in pools
            for device in pool.devices
            if device.utilization_ratio is not None
        )
        self._vram_used.replace(
            ((*_replica_of(pool), device.device), device.memory_used_bytes)
            for pool in pools
            for device in pool.devices
            if device.memory_used_bytes is not None
        )
        self._devices.sample((pool.host_id, device) for pool in pools for device in pool.devices)

    def _sample_queue(self, core: Core) -> None:
        # A series that was shown once stays, at 0: one that vanishes reads as "unknown".
        depths = dict.fromkeys(self._waiting_keys, 0)
        for priority in Priority:
            depths.setdefault(("", "", "", priority.name.lower()), 0)
        for needs, priority, count in core.waiting_by_needs():
            key = (needs.engine, needs.engine_version, "", priority.name.lower())
            depths[key] = depths.get(key, 0) + count
        self._waiting_keys = dict.fromkeys(list(depths)[:SERIES_MAX])
        self._queue_depth.replace(depths.items())
        self._orchd_depth.replace([(("",), core.queue_depth())])

    def shutdown(self, timeout_ms: int) -> None:
        """Sends what is left, for at most `timeout_ms`. Blocks."""
        if self._provider is not None:
            self._provider.shutdown(timeout_ms)


def _replica(tracked: Tracked) -> tuple[str, str, str, str]:
    return tracked.engine, tracked.engine_version, tracked.pool_id, tracked.replica_id


def _replica_of(pool: PoolGauges) -> tuple[str, str, str, str]:
    return pool.engine, pool.engine_version, pool.pool_id, pool.replica_id


def _tenth(chance: float) -> str:
    """The tenth in which a probability lies, by its lower end: 0.0 to 0.9."""
    return f"{min(int(chance * _TENTHS), _TENTHS - 1) / _TENTHS}"


def _late(error_ms: int) -> str:
    return "late" if error_ms > 0 else "early"


def _mode(mode: StartMode) -> str:
    return "restart" if mode is StartMode.FRESH else mode.value


def _rejection_kind(refusal: Refusal) -> str:
    full, invalid, policy = _REJECTIONS
    if refusal.reason is Reason.ADMISSION_REJECT and refusal.policy_label in _QUEUE_FULL:
        return full
    return invalid if refusal.reason in _INVALID else policy
