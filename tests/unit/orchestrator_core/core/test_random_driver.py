"""Seeded random worlds around the core; `LLAMAORCH_SEEDS=5000` plays a longer campaign."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_core.core.machine import Core
from orchestrator_core.core.timers import TimerKind
from tests.unit.orchestrator_core.core.worlds import play

SEEDS = int(os.environ.get("LLAMAORCH_SEEDS", "300"))
ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_no_world_breaks_an_invariant_and_nothing_is_left_behind(first: int) -> None:
    """Every invariant holds after every step, and once all is over every table is empty.

    LO-101, LO-103, LO-203, LO-204, LO-305, ORCH-3008, ORCH-3026.
    """
    for seed in range(first, min(first + 20, SEEDS)):
        world = play(seed)
        world.settle()

        state = world.core._state
        assert not state.jobs, seed
        assert not state.attempts, seed
        assert not state.ended, seed
        assert not state.ended_unrun, seed
        assert not state.displaced, seed
        assert not len(state.queue), seed
        assert not state.throttle._waiting, seed
        assert not len(state.sessions), seed
        assert not world.journal.sessions, seed
        pool_timers = {TimerKind.POOL_STALE, TimerKind.POOL_REOPENS}
        assert {kind for kind, _ in state.timers._due} <= pool_timers, seed
        assert set(world.promised) <= set(world.told), seed


def test_a_job_whose_host_comes_back_while_it_is_being_forgotten_is_kept_until_it_stops() -> None:
    """After a restart, beyond the bound of ended jobs; its number is not given out again."""
    play(471).settle()


def test_equal_inputs_give_equal_effects() -> None:
    """A second core that is given the recorded inputs answers the same, byte for byte. LO-207."""
    for seed in range(1, 12):
        world = play(seed)

        twin = Core(world.first_config)
        answers = [twin.step(event, now_ms) for event, now_ms in world.inputs]

        assert repr(answers) == repr(world.outputs), seed


def test_effects_do_not_depend_on_the_hash_seed() -> None:
    """String hashing, which differs from process to process, does not reach an effect."""
    program = (
        "from tests.unit.orchestrator_core.core.worlds import digest_of\n"
        "print([digest_of(seed) for seed in range(1, 5)])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert len(answers) == 1
