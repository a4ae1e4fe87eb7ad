"""Faults that a seed seldom draws in this order: told as scenarios of the simulation."""

from dataclasses import replace

import pytest

from faults import history as h
from faults.simulation.clients import Plan
from faults.simulation.command import wrong_with
from faults.simulation.engine import Kind
from faults.simulation.run import Run, play
from faults.simulation.scenario import READY_MS, Blow, Fault, Scenario, scenario_of
from llamaorch_client.request import FailoverPolicy
from orchestrator_core.config.schema import Config
from orchestrator_core.hosts import rereading
from orchestrator_core.relay.sides import SIDE_BYTES

AT_ONCE = 0.1
"""A chance with which those who lose a connection notice it soon."""
THE_CLIENT = 0.1
"""A chance that names the client, of it and one host."""
WRITTEN, QUEUED = 0.7, 0.83
"""Chances that name the first continuation: in the journal, and then on its way to its host."""

SOON, SLOW, VERY_SLOW = 0.1, 0.1, 0.05
"""Chances: an engine dies as soon as it is done; a message takes up to 30 ms, or 600 ms."""

LATE_HOSTS = (0.4, 0.8)
"""Chances that name the first host, and the second, of them and the client."""


def kind_of(host: str, start_ms: float = 5.0) -> Kind:
    """A slow pool with one slot."""
    return Kind(host, f"{host}-p1", 1, deterministic=False, token_ms=300.0, start_ms=start_ms)


def configured(config: Config, kept_bytes: int = 1 << 20, window_bytes: int = 1_024) -> Config:
    """So much of a job's output is kept here, and so much comes from its host in one frame."""
    jobs = config.jobs.model_copy(update={"output_bytes_per_job": kept_bytes})
    pools = config.pools.model_copy(update={"send_window_bytes": window_bytes})
    return config.model_copy(update={"jobs": jobs, "pools": pools})


def story(seed: int, plan: Plan, *blows: Blow, **changes: object) -> Scenario:
    """One job on a host with one slow pool, unless changed, and what happens to it."""
    drawn = scenario_of(0)
    told = replace(
        drawn,
        seed=seed,
        hosts={"host1": (kind_of("host1"),)},
        clients={"client1": [plan]},
        exchanges={"client1": drawn.exchanges["client1"]},
        blows=blows,
        heal_ms=READY_MS + 12_000,
        bad_engines=False,
        deeds=(),
        config=configured(scenario_of(0).config),
    )
    return replace(told, **changes)  # type: ignore[arg-type]


def recovered(run: Run) -> list[str]:
    """States in which jobs were found at each start but the first."""
    starts = [event for event in run.history if isinstance(event, h.Recovered)][1:]
    return [state for start in starts for state in start.states.values()]


def late(number: int, for_ms: int = 3_000) -> Blow:
    """One of two hosts, the first or the second, comes back later than the other."""
    return Blow(READY_MS + 2_900, Fault.REFUSE, for_ms, LATE_HOSTS[number - 1])


def test_a_cancel_survives_a_crash_that_comes_before_its_record() -> None:
    """The journal stalls, so the engine is stopped unwritten; then the host is the witness.

    Nobody was told anything, and the client cannot ask again before its host is back; the job ends
    as it asked, not by a fault that never was.
    """
    ends: set[str] = set()
    found: set[str] = set()
    for seed in range(8):
        plan = Plan("r0", 0, 14, 1, failover=list(FailoverPolicy)[seed % 3], cancel_after_ms=2_000)
        run = play(
            story(
                seed,
                plan,
                Blow(READY_MS + 1_500, Fault.SLOW_DISK, 9_000, AT_ONCE),
                Blow(READY_MS + 2_550, Fault.REFUSE, 7_000, THE_CLIENT),
                Blow(READY_MS + 2_600, Fault.KILL_ORCHESTRATOR, 300, AT_ONCE),
            )
        )
        assert wrong_with(run) == []
        found.update(recovered(run))
        ends.update(event.state for event in run.history if isinstance(event, h.JournalEnded))

    assert found == {"DISPATCHED", "CANCELLED"}
    assert ends == {"CANCELLED"}


@pytest.mark.parametrize("side_bytes", [40, SIDE_BYTES])
def test_a_continuation_follows_text_that_only_its_former_host_has(
    monkeypatch: pytest.MonkeyPatch, side_bytes: int
) -> None:
    """It was evicted here, its engine is dead, and the next pool is on another host. LO-304.

    Its former host brings it, at once or in several parts.
    """
    monkeypatch.setattr(rereading, "SIDE_BYTES", side_bytes)
    ends: list[str] = []
    moved = 0
    for seed in range(6):
        run = play(
            story(
                seed,
                Plan("r0", 0, 14, 1, failover=FailoverPolicy.CONTINUE),
                Blow(READY_MS + 3_000, Fault.KILL_ENGINE, 0, AT_ONCE),
                # An engine takes longer to come back than the other host to take the job over.
                hosts={host: (kind_of(host, 3_000.0),) for host in ("host1", "host2")},
                config=configured(scenario_of(0).config, kept_bytes=100, window_bytes=8),
            )
        )
        assert wrong_with(run) == []
        began = [event for event in run.history if isinstance(event, h.AttemptBegan)]
        moved += len({event.host for event in began}) > 1
        ends += [event.state for event in run.history if isinstance(event, h.JournalEnded)]

    assert moved >= 4
    assert ends == ["FINISHED"] * 6


@pytest.mark.parametrize("when", [WRITTEN, QUEUED])
@pytest.mark.parametrize("kept_bytes", [100, 1 << 20])
@pytest.mark.parametrize("last", [1, 2])
def test_a_continuation_that_was_written_and_not_sent(
    when: float, kept_bytes: int, last: int
) -> None:
    """Orchestratord dies before any host has it; the text is with the first host alone. LO-304.

    Whichever host comes back last, the job goes on from all of its text.
    """
    began: set[tuple[str, int]] = set()
    for seed in range(4):
        run = play(
            story(
                seed,
                Plan("r0", 0, 14, 1, failover=FailoverPolicy.CONTINUE),
                Blow(READY_MS, Fault.KILL_UNSENT, 300, when),
                late(last),
                Blow(READY_MS + 3_000, Fault.KILL_ENGINE, 0, AT_ONCE),
                hosts={host: (kind_of(host, 3_000.0),) for host in ("host1", "host2")},
                config=configured(scenario_of(0).config, kept_bytes, window_bytes=8),
            )
        )
        assert wrong_with(run) == []
        assert run.stats.unsent == 1
        assert run.stats.ends == {"FINISHED": 1}
        began |= {(e.host, e.attempt) for e in run.history if isinstance(e, h.AttemptBegan)}
        told = [e for e in run.history if isinstance(e, h.Started | h.Resumed)]
        assert {event.attempt for event in told} >= {1, 3}

    assert {attempt for _, attempt in began} == {1, 3}


def test_an_engine_that_dies_beside_it_leaves_the_text() -> None:
    """Its pool manager goes on, and does not hold what it never had. LO-304."""
    for seed in range(4):
        run = play(
            story(
                seed,
                Plan("r0", 0, 14, 1, failover=FailoverPolicy.CONTINUE),
                Blow(READY_MS, Fault.KILL_UNSENT, 3_000, WRITTEN),
                Blow(READY_MS + 3_000, Fault.KILL_ENGINE, 0, AT_ONCE),
                Blow(READY_MS + 3_500, Fault.KILL_ENGINE, 0, AT_ONCE),
                Blow(READY_MS + 3_600, Fault.KILL_ENGINE, 0, 0.9),
                hosts={host: (kind_of(host),) for host in ("host1", "host2")},
            )
        )
        assert wrong_with(run) == []
        assert (run.stats.unsent, run.stats.ends) == (1, {"FINISHED": 1})


@pytest.mark.parametrize("away", [1, 2])
def test_a_continuation_ends_where_a_host_stays_away(away: int) -> None:
    """The first has the text, and the second may have added to it: nothing goes on from less."""
    for seed in range(4):
        run = play(
            story(
                seed,
                Plan("r0", 0, 14, 1, failover=FailoverPolicy.CONTINUE),
                Blow(READY_MS, Fault.KILL_UNSENT, 300, WRITTEN),
                late(away, 30_000),
                Blow(READY_MS + 3_000, Fault.KILL_ENGINE, 0, AT_ONCE),
                hosts={host: (kind_of(host, 3_000.0),) for host in ("host1", "host2")},
                heal_ms=READY_MS + 40_000,
            )
        )
        assert wrong_with(run) == []
        ends = [event for event in run.history if isinstance(event, h.JournalEnded)]
        assert [(end.state, end.reason) for end in ends] == [("FAILED", "WORKER_RESET")]


@pytest.mark.parametrize("failover", list(FailoverPolicy))
def test_an_end_is_overtaken_by_the_report_of_a_new_engine(failover: FailoverPolicy) -> None:
    """Output is read slower than it is made, and the engine dies once it is done. LO-305.

    The end waits at its host behind the output; the next engine is there before it.
    """
    overtaken = 0
    for seed in range(4):
        run = play(
            story(
                seed,
                Plan("r0", 0, 14, 1, failover=failover),
                Blow(READY_MS, Fault.KILL_ENDED, 0, SOON),
                Blow(READY_MS + 50, Fault.SLOW_NETWORK, 7_000, VERY_SLOW),
                hosts={"host1": (replace(kind_of("host1"), token_ms=10.0),)},
                config=configured(scenario_of(0).config, window_bytes=8),
            )
        )
        assert wrong_with(run) == []
        assert run.stats.ends == {"FINISHED": 1}
        assert sum(isinstance(event, h.AttemptBegan) for event in run.history) == 1
        heard = run.stats.heard.items()
        overtaken += sum(count for (_, word), count in heard if word == "finished overtaken")

    assert overtaken == 4


def test_a_host_that_is_stopped_in_order_tells_every_end() -> None:
    """Also what waits behind output that is read slowly; nothing is generated again. LO-305."""
    for seed in range(4):
        run = play(
            story(
                seed,
                Plan("r0", 0, 14, 1),
                Blow(READY_MS + 20, Fault.SLOW_NETWORK, 7_000, SLOW),
                Blow(READY_MS + 200, Fault.LEAVE_HOST, 2_000, 0.0),
                hosts={"host1": (replace(kind_of("host1"), token_ms=10.0),)},
                config=configured(scenario_of(0).config, window_bytes=8),
            )
        )
        assert wrong_with(run) == []
        left = next(e.at_ms for e in run.history if isinstance(e, h.Crashed))
        told = next(e.at_ms for e in run.history if isinstance(e, h.JournalEnded))
        held = next(e.at_ms for e in run.history if isinstance(e, h.EndHeld))
        assert held < READY_MS + 200 < told <= left
        assert sum(isinstance(event, h.AttemptBegan) for event in run.history) == 1
