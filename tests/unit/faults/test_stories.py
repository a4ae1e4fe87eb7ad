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
from orchestrator_core.config_schema import Config
from orchestrator_core.hosts import rereading
from orchestrator_core.relay.sides import SIDE_BYTES

AT_ONCE = 0.1
"""A chance with which those who lose a connection notice it soon."""
THE_CLIENT = 0.1
"""A chance that names the client, of it and one host."""


def kind_of(host: str, start_ms: float = 5.0) -> Kind:
    """A slow pool with one slot."""
    return Kind(host, f"{host}-p1", 1, deterministic=False, token_ms=300.0, start_ms=start_ms)


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
        relay_bytes=None,
    )
    return replace(told, **changes)  # type: ignore[arg-type]


def in_small_frames(config: Config) -> Config:
    """Output comes in frames of a few pieces, also where it is sent again."""
    pools = config.pools.model_copy(update={"send_window_bytes": 8})
    return config.model_copy(update={"pools": pools})


def recovered(run: Run) -> list[str]:
    """States in which jobs were found at each start but the first."""
    starts = [event for event in run.history if isinstance(event, h.Recovered)][1:]
    return [state for start in starts for state in start.states.values()]


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
                relay_bytes=100,
                config=in_small_frames(scenario_of(0).config),
            )
        )
        assert wrong_with(run) == []
        began = [event for event in run.history if isinstance(event, h.AttemptBegan)]
        moved += len({event.host for event in began}) > 1
        ends += [event.state for event in run.history if isinstance(event, h.JournalEnded)]

    assert moved >= 4
    assert ends == ["FINISHED"] * 6
