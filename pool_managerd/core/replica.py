"""Supervision of one pool's engine as a table: (phase, event) -> next phase and effects.

The machine starts an engine, restarts it with backoff when it fails, and stops trying when it fails
too often. A pair that is not in `TABLE` changes nothing: such events are late news of an engine
that is already being stopped. Draining and an open circuit are beside the phases: they say whether
a serving engine takes new work. So is holding: no engine is started on a device that is unwell.

ORCH-3002, ORCH-3010, ORCH-3038, ORCH-3040, ORCH-3053, OC-CTRL-2001.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pool_managerd.core.backoff import Backoff


class PoolState(enum.Enum):
    """What a pool tells the world."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    UNREADY = "unready"


class Reason(enum.Enum):
    """Why a pool is DRAINING or UNREADY."""

    NONE = "none"
    ENGINE_EXITED = "engine_exited"
    ENGINE_UNHEALTHY = "engine_unhealthy"
    PRELOAD_FAILED = "preload_failed"
    BACKOFF = "backoff"
    RESTART_STORM = "restart_storm"
    DEVICE_ERROR = "device_error"
    OPERATOR = "operator"
    SHUTDOWN = "shutdown"
    CANCEL_UNCONFIRMED = "cancel_unconfirmed"
    CIRCUIT_OPEN = "circuit_open"
    DEVICE_OUT_OF_MEMORY = "device_out_of_memory"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"


class Phase(enum.Enum):
    """Where the engine is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"
    WAITING = "waiting"
    HALTED = "halted"
    CLOSING = "closing"
    CLOSED = "closed"


class Kind(enum.Enum):
    """What happened."""

    PRELOADED = "preloaded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    ENGINE_STOPPED = "engine_stopped"
    RETRY_DUE = "retry_due"
    RELOAD = "reload"
    CLOSE = "close"


class Effect(enum.Enum):
    """What the shell does next."""

    START_ENGINE = "start_engine"
    STOP_ENGINE = "stop_engine"
    ARM_RETRY = "arm_retry"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    `reason` and `detail` (a sentence for people) belong to FAILED and ROLLED_BACK, `jitter` to
    ENGINE_STOPPED. ROLLED_BACK: the model of a reload could not be loaded, the former one is next.
    `passing`: what failed is elsewhere and may come by itself, so that trying on harms nobody.
    """

    kind: Kind
    reason: Reason = Reason.NONE
    detail: str = ""
    jitter: float = 0.0
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of supervision, milliseconds and counts.

    `storm_failures` failures within `storm_window_ms` halt the pool; `stable_ms` of service forgive
    the past.
    """

    backoff: Backoff
    storm_failures: int
    storm_window_ms: int
    stable_ms: int

    def __post_init__(self) -> None:
        if min(self.storm_failures, self.storm_window_ms, self.stable_ms) <= 0:
            raise ValueError("supervision limits are positive")


_Row = tuple[Phase, tuple[Effect, ...]]

TABLE: Mapping[tuple[Phase, Kind], _Row] = MappingProxyType(
    {
        (Phase.STARTING, Kind.PRELOADED): (Phase.SERVING, ()),
        (Phase.STARTING, Kind.FAILED): (Phase.STOPPING, (Effect.STOP_ENGINE,)),
        (Phase.STARTING, Kind.ROLLED_BACK): (Phase.STOPPING, (Effect.STOP_ENGINE,)),
        (Phase.STARTING, Kind.CLOSE): (Phase.CLOSING, (Effect.STOP_ENGINE,)),
        (Phase.SERVING, Kind.FAILED): (Phase.STOPPING, (Effect.STOP_ENGINE,)),
        (Phase.SERVING, Kind.RELOAD): (Phase.STOPPING, (Effect.STOP_ENGINE,)),
        (Phase.SERVING, Kind.CLOSE): (Phase.CLOSING, (Effect.STOP_ENGINE,)),
        # After a failure the wait is WAITING, or HALTED in a storm; after a reload, and after one
        # that failed, it is zero.
        (Phase.STOPPING, Kind.ENGINE_STOPPED): (Phase.WAITING, (Effect.ARM_RETRY,)),
        (Phase.STOPPING, Kind.CLOSE): (Phase.CLOSING, ()),
        (Phase.WAITING, Kind.RETRY_DUE): (Phase.STARTING, (Effect.START_ENGINE,)),
        (Phase.WAITING, Kind.RELOAD): (Phase.STARTING, (Effect.START_ENGINE,)),
        (Phase.WAITING, Kind.CLOSE): (Phase.CLOSED, ()),
        (Phase.HALTED, Kind.RELOAD): (Phase.STARTING, (Effect.START_ENGINE,)),
        (Phase.HALTED, Kind.CLOSE): (Phase.CLOSED, ()),
        (Phase.CLOSING, Kind.ENGINE_STOPPED): (Phase.CLOSED, ()),
    }
)


class Supervisor:
    """The state machine of one pool.

    Begins in STARTING: the shell starts the first engine at once.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._phase = Phase.STARTING
        self._cause = Reason.NONE
        self._detail = ""
        self._drain = Reason.NONE
        self._held = ""
        self._tripped = ""
        self._failures = 0
        self._failed_at_ms: list[int] = []
        self._serving_since_ms = 0
        self._retry_at_ms: int | None = None

    @property
    def phase(self) -> Phase:
        """Where the engine is in its life."""
        return self._phase

    @property
    def retry_at_ms(self) -> int | None:
        """Instant of the next start while WAITING, else None."""
        return self._retry_at_ms if self._phase is Phase.WAITING else None

    @property
    def accepts_work(self) -> bool:
        """True when a new attempt may start. ORCH-3010."""
        return self._serves and self._drain is Reason.NONE and not self._tripped

    @property
    def _serves(self) -> bool:
        return self._phase is Phase.SERVING

    @property
    def storm(self) -> str:
        """While HALTED, what is wrong and how to go on, for people; else empty. ORCH-3053."""
        if self._phase is not Phase.HALTED:
            return ""
        return (
            f"{self._detail} (failure {len(self._failed_at_ms)} within "
            f"{self._limits.storm_window_ms // 1000} s: it is not started again before it is "
            "reloaded; correct what is wrong, then send SIGHUP to pool-managerd)"
        )

    def state(self) -> tuple[PoolState, Reason, str]:
        """State, reason and a sentence for people."""
        match self._phase:
            case Phase.STARTING:
                return PoolState.STARTING, Reason.NONE, ""
            case Phase.SERVING:
                return self._serving_state()
            case Phase.HALTED:
                return PoolState.UNREADY, Reason.RESTART_STORM, self.storm
            case Phase.WAITING if self._held:
                return PoolState.UNREADY, Reason.DEVICE_ERROR, self._held
            case Phase.WAITING:
                return PoolState.UNREADY, Reason.BACKOFF, self._detail
            case Phase.STOPPING | Phase.CLOSING | Phase.CLOSED:
                return PoolState.UNREADY, self._cause, self._detail

    def _serving_state(self) -> tuple[PoolState, Reason, str]:
        if self._drain is not Reason.NONE:
            return PoolState.DRAINING, self._drain, ""
        if self._tripped:
            return PoolState.UNREADY, Reason.CIRCUIT_OPEN, self._tripped
        return PoolState.READY, Reason.NONE, ""

    def set_drain(self, reason: Reason) -> None:
        """Drains for `reason`, or takes work again with NONE. A shutdown is never taken back."""
        if self._drain is not Reason.SHUTDOWN:
            self._drain = reason

    def hold(self, sentence: str) -> None:
        """Starts no engine because of a device, as `sentence` says, or starts them again with "".

        Whoever ends the hold posts RETRY_DUE when `overdue`: the timer may have fired meanwhile.
        """
        self._held = sentence

    def overdue(self, now_ms: int) -> bool:
        """True when the next start is due and nothing holds it back."""
        return (
            self._phase is Phase.WAITING and not self._held and (self._retry_at_ms or 0) <= now_ms
        )

    def trip(self, sentence: str) -> None:
        """Takes no work while the engine serves on, because of `sentence`; "" ends it.

        Without effect unless it serves: another engine begins with a clean slate. ORCH-3040.
        """
        if self._serves:
            self._tripped = sentence

    def step(self, event: Event, now_ms: int) -> tuple[Effect, ...]:
        """Applies one event and returns what the shell does next, in order."""
        if self._held_back(event, now_ms):
            return ()
        row = TABLE.get((self._phase, event.kind))
        if row is None:
            return ()
        was, (self._phase, effects) = self._phase, row
        if not self._serves:
            self._tripped = ""
        match event.kind:
            case Kind.PRELOADED:
                self._serving_since_ms = now_ms
            case Kind.FAILED:
                self._count_failure(event, was, now_ms)
            case Kind.ROLLED_BACK:
                self._cause, self._detail = event.reason, event.detail
            case Kind.RELOAD:
                self._forgive(event)
            case Kind.CLOSE:
                self._cause, self._detail = Reason.SHUTDOWN, ""
            case Kind.ENGINE_STOPPED if self._phase is Phase.WAITING:
                return self._after_stop(event, now_ms)
            case _:
                pass
        return effects

    def _held_back(self, event: Event, now_ms: int) -> bool:
        """True for what would start an engine on a device that is unwell."""
        if not self._held or self._phase not in (Phase.WAITING, Phase.HALTED):
            return False
        if event.kind is Kind.RELOAD:
            # The operator's word ends a storm, but the device still has to be well.
            self._phase, self._retry_at_ms = Phase.WAITING, now_ms
            self._forgive(event)
        return event.kind in (Kind.RETRY_DUE, Kind.RELOAD)

    def _count_failure(self, event: Event, was: Phase, now_ms: int) -> None:
        stable = was is Phase.SERVING and (
            now_ms - self._serving_since_ms >= self._limits.stable_ms
        )
        self._failures = 1 if stable else self._failures + 1
        window_start_ms = now_ms - self._limits.storm_window_ms
        recent = [at_ms for at_ms in self._failed_at_ms if at_ms > window_start_ms]
        self._failed_at_ms = recent if event.passing else [*recent, now_ms]
        self._cause, self._detail = event.reason, event.detail

    def _forgive(self, event: Event) -> None:
        self._failures = 0
        self._failed_at_ms.clear()
        self._cause, self._detail = Reason.OPERATOR, event.detail

    def _after_stop(self, event: Event, now_ms: int) -> tuple[Effect, ...]:
        if len(self._failed_at_ms) >= self._limits.storm_failures:
            self._phase = Phase.HALTED
            return ()
        delay_ms = self._limits.backoff.delay_ms(self._failures, event.jitter)
        self._retry_at_ms = now_ms + delay_ms
        return (Effect.ARM_RETRY,)
