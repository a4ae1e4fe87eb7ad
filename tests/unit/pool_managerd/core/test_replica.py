"""Supervision: the table against a naive model, and the bounds of restarting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.backoff import Backoff
from pool_managerd.core.replica import (
    TABLE,
    Effect,
    Event,
    Kind,
    Limits,
    Phase,
    PoolState,
    Reason,
    Supervisor,
)

LIMITS = Limits(Backoff(100, 800), storm_failures=3, storm_window_ms=10_000, stable_ms=5_000)
FAILED = Event(Kind.FAILED, Reason.ENGINE_EXITED, "it ended")


def serving() -> Supervisor:
    """A pool that is READY."""
    supervisor = Supervisor(LIMITS)
    supervisor.step(Event(Kind.PRELOADED), 0)
    return supervisor


def fail(supervisor: Supervisor, now_ms: int, jitter: float = 0.0) -> None:
    """One failure, stopped at once."""
    supervisor.step(FAILED, now_ms)
    supervisor.step(Event(Kind.ENGINE_STOPPED, jitter=jitter), now_ms)


class Naive:
    """The same pool, written as a shell that counts engines instead of naming phases."""

    def __init__(self) -> None:
        self.running = 1
        self.stopping = False
        self.closing = False

    def apply(self, effects: tuple[Effect, ...]) -> None:
        """Does what the machine says and refuses what cannot be done."""
        for effect in effects:
            if effect is Effect.START_ENGINE:
                assert self.running == 0, "one engine at a time"
                assert not self.closing, "nothing starts after close"
                self.running = 1
            elif effect is Effect.STOP_ENGINE:
                assert self.running == 1, "only what runs is stopped"
                assert not self.stopping, "stopped once"
                self.stopping = True


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Kind)), st.integers(0, 4_000), st.booleans(), st.booleans()),
        max_size=60,
    )
)
def test_one_engine_at_a_time_and_no_work_without_it(
    script: list[tuple[Kind, int, bool, bool]],
) -> None:
    """In any order of events at most one engine lives, and work is taken only while it serves.

    While a device holds the pool no engine is started.
    """
    supervisor, naive, now_ms = Supervisor(LIMITS), Naive(), 0
    for kind, elapsed_ms, drain, held in script:
        now_ms += elapsed_ms
        supervisor.hold("a device is unwell" if held else "")
        supervisor.set_drain(Reason.OPERATOR if drain else Reason.NONE)
        if kind is Kind.ENGINE_STOPPED:
            if not naive.stopping:
                continue
            naive.running, naive.stopping = 0, False
        if kind is Kind.CLOSE:
            naive.closing = True

        effects = supervisor.step(Event(kind, Reason.ENGINE_EXITED), now_ms)
        naive.apply(effects)

        assert not (held and Effect.START_ENGINE in effects)
        if supervisor.accepts_work:
            assert (naive.running, naive.stopping, drain) == (1, False, False)
        assert (supervisor.state()[0] is PoolState.READY) == supervisor.accepts_work
        if supervisor.phase in (Phase.WAITING, Phase.HALTED, Phase.CLOSED):
            assert naive.running == 0
        if naive.closing:
            assert supervisor.phase in (Phase.CLOSING, Phase.CLOSED)


def test_every_phase_but_the_last_can_be_closed() -> None:
    """From every phase there is a way to CLOSED, so that a stop cannot hang."""
    for phase in Phase:
        can_close = (phase, Kind.CLOSE) in TABLE
        assert can_close == (phase not in (Phase.CLOSING, Phase.CLOSED))


def test_restarts_back_off_and_service_forgives() -> None:
    """Waits double with failures in a row; a stable time of service starts over. ORCH-3038."""
    limits = Limits(Backoff(100, 800), storm_failures=9, storm_window_ms=1, stable_ms=5_000)
    supervisor, now_ms, waits = Supervisor(limits), 0, []
    for served_ms in (0, 0, 4_999, 0, 5_000, 0):
        supervisor.step(Event(Kind.PRELOADED), now_ms)
        now_ms += served_ms
        fail(supervisor, now_ms)
        assert supervisor.retry_at_ms is not None
        waits.append(supervisor.retry_at_ms - now_ms)
        supervisor.step(Event(Kind.RETRY_DUE), supervisor.retry_at_ms)
        now_ms += 10_000

    assert waits == [100, 200, 400, 800, 100, 200]


def test_a_restart_storm_halts_until_an_operator_reloads() -> None:
    """Three failures within the window end the restarting. ORCH-3040, ORCH-3053."""
    supervisor = serving()
    for now_ms in (1_000, 2_000):
        fail(supervisor, now_ms)
        supervisor.step(Event(Kind.RETRY_DUE), now_ms + 500)
        supervisor.step(Event(Kind.PRELOADED), now_ms + 600)
    fail(supervisor, 3_000)

    assert supervisor.state()[:2] == (PoolState.UNREADY, Reason.RESTART_STORM)
    assert supervisor.step(Event(Kind.RETRY_DUE), 99_000) == ()
    assert supervisor.step(Event(Kind.RELOAD), 99_000) == (Effect.START_ENGINE,)


def test_failures_outside_the_window_make_no_storm() -> None:
    """What failed long ago does not count."""
    supervisor = serving()
    for now_ms in (0, 20_000, 40_000, 60_000):
        fail(supervisor, now_ms)
        assert supervisor.phase is Phase.WAITING
        supervisor.step(Event(Kind.RETRY_DUE), now_ms + 1_000)
        supervisor.step(Event(Kind.PRELOADED), now_ms + 1_000)


@pytest.mark.parametrize("reason", [Reason.OPERATOR, Reason.SHUTDOWN])
def test_a_drain_outlives_a_restart(reason: Reason) -> None:
    """A pool that is drained comes back DRAINING, not READY. ORCH-3010."""
    supervisor = serving()
    supervisor.set_drain(reason)
    fail(supervisor, 0)
    supervisor.step(Event(Kind.RETRY_DUE), 100)
    supervisor.step(Event(Kind.PRELOADED), 200)

    assert supervisor.state()[:2] == (PoolState.DRAINING, reason)
    assert not supervisor.accepts_work


def test_a_shutdown_is_not_taken_back() -> None:
    """An operator who ends a drain does not revive a host that shuts down."""
    supervisor = serving()
    supervisor.set_drain(Reason.SHUTDOWN)

    supervisor.set_drain(Reason.NONE)

    assert not supervisor.accepts_work


def test_a_reload_restarts_at_once_and_is_no_failure() -> None:
    """A reload has no wait and leaves no trace in the breaker. OC-CTRL-2003."""
    supervisor = serving()
    assert supervisor.step(Event(Kind.RELOAD), 50) == (Effect.STOP_ENGINE,)

    effects = supervisor.step(Event(Kind.ENGINE_STOPPED, jitter=0.9), 60)

    assert effects == (Effect.ARM_RETRY,)
    assert supervisor.retry_at_ms == 60


def waiting(hold: str = "") -> Supervisor:
    """A pool that failed at 1,000 and waits for 100 ms, held or not."""
    supervisor = serving()
    supervisor.hold(hold)
    fail(supervisor, 1_000)
    return supervisor


def test_a_pool_is_not_started_while_a_device_is_unwell() -> None:
    """It says so, and starts when the device is well and the backoff is over. ORCH-3038."""
    supervisor = waiting("the GPU is lost")

    assert supervisor.state() == (PoolState.UNREADY, Reason.DEVICE_ERROR, "the GPU is lost")
    assert supervisor.step(Event(Kind.RETRY_DUE), 1_100) == ()
    assert not supervisor.overdue(5_000)

    supervisor.hold("")
    assert (supervisor.overdue(1_099), supervisor.overdue(1_100)) == (False, True)
    assert supervisor.state()[1] is Reason.BACKOFF
    assert supervisor.step(Event(Kind.RETRY_DUE), 5_000) == (Effect.START_ENGINE,)
    assert not supervisor.overdue(9_000)


def test_a_reload_does_not_start_a_pool_on_an_unwell_device() -> None:
    """It forgives the past, a restart storm too, and the start follows once the device is well."""
    storm = serving()
    for now_ms in (1_000, 2_000, 3_000):
        fail(storm, now_ms)
        storm.step(Event(Kind.RETRY_DUE), now_ms + 900)
        storm.step(Event(Kind.PRELOADED), now_ms + 950)
    assert storm.phase is Phase.HALTED

    for supervisor in (storm, waiting()):
        supervisor.hold("the GPU is lost")
        assert supervisor.step(Event(Kind.RELOAD, detail="asked"), 4_000) == ()
        assert supervisor.state()[1] is Reason.DEVICE_ERROR
        supervisor.hold("")
        assert supervisor.overdue(4_000)
        assert supervisor.step(Event(Kind.RETRY_DUE), 4_000) == (Effect.START_ENGINE,)


def test_an_open_circuit_takes_no_work_until_it_closes_or_the_engine_is_another() -> None:
    """UNREADY with the sentence while the engine serves; a restart begins anew. ORCH-3040."""
    supervisor = serving()

    supervisor.trip("it failed too often")
    tripped = supervisor.state()
    accepts = supervisor.accepts_work
    supervisor.trip("")
    closed = supervisor.state()[0]
    supervisor.trip("it failed too often")
    fail(supervisor, 0)
    supervisor.trip("late news")
    supervisor.step(Event(Kind.RETRY_DUE), 100)
    supervisor.step(Event(Kind.PRELOADED), 200)

    assert tripped == (PoolState.UNREADY, Reason.CIRCUIT_OPEN, "it failed too often")
    assert not accepts
    assert closed is PoolState.READY
    assert supervisor.accepts_work


def test_a_drain_is_shown_before_an_open_circuit() -> None:
    """An operator who drains a failing pool sees that it drains."""
    supervisor = serving()
    supervisor.trip("it failed too often")
    supervisor.set_drain(Reason.OPERATOR)

    assert supervisor.state()[:2] == (PoolState.DRAINING, Reason.OPERATOR)


def test_a_reload_that_fails_goes_back_at_once_and_is_no_failure() -> None:
    """The former model is loaded without a wait, even where one failure is a storm."""
    supervisor = Supervisor(Limits(Backoff(100, 800), 1, 10_000, 5_000))
    supervisor.step(Event(Kind.PRELOADED), 0)
    supervisor.step(Event(Kind.RELOAD), 50)
    supervisor.step(Event(Kind.ENGINE_STOPPED), 60)
    supervisor.step(Event(Kind.RETRY_DUE), 60)

    stop = supervisor.step(Event(Kind.ROLLED_BACK, Reason.PRELOAD_FAILED, "no such file"), 70)
    effects = supervisor.step(Event(Kind.ENGINE_STOPPED, jitter=0.9), 80)

    assert (stop, effects) == ((Effect.STOP_ENGINE,), (Effect.ARM_RETRY,))
    assert supervisor.retry_at_ms == 80


def test_a_storm_says_what_is_wrong_and_how_to_go_on() -> None:
    """The sentence names the failure, the count and the way out; other phases say nothing."""
    supervisor = serving()
    said = [supervisor.storm]
    for now_ms in (0, 1_000, 2_000):
        fail(supervisor, now_ms)
        said.append(supervisor.storm)
        supervisor.step(Event(Kind.RETRY_DUE), now_ms + 500)

    assert said[:3] == ["", "", ""]
    for words in ("it ended", "failure 3 within 10 s", "SIGHUP"):
        assert words in said[3]
