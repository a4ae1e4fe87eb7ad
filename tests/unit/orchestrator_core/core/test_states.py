"""The state tables: complete, closed, and equal to the document drawn from them."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from orchestrator_core.core.states import (
    ATTEMPT_TABLE,
    JOB_TABLE,
    TERMINAL,
    AttemptState,
    AttemptTrigger,
    IllegalTransitionError,
    JobState,
    JobTrigger,
    next_attempt_state,
    next_job_state,
)

ROOT = Path(__file__).parents[4]


def reachable(table: dict, start: object) -> set:
    """States that can be reached from `start`."""
    seen, front = {start}, [start]
    while front:
        for target in table[front.pop()].values():
            if target not in seen:
                seen.add(target)
                front.append(target)
    return seen


def test_every_state_is_reached_and_every_trigger_is_used() -> None:
    """There is nothing in the tables that cannot happen."""
    assert reachable(JOB_TABLE, JobState.QUEUED) == set(JobState) == set(JOB_TABLE)
    assert reachable(ATTEMPT_TABLE, AttemptState.SENT) == set(AttemptState) == set(ATTEMPT_TABLE)
    assert {t for row in JOB_TABLE.values() for t in row} == set(JobTrigger)
    assert {t for row in ATTEMPT_TABLE.values() for t in row} == set(AttemptTrigger)


def test_terminal_states_are_final_and_every_live_state_can_end() -> None:
    """Nothing follows the end, and every live job can be cancelled, expire and fail. ORCH-3026."""
    for state in JobState:
        row = JOB_TABLE[state]
        assert state.terminal == (state in TERMINAL) == (not row)
        if not state.terminal:
            assert {JobTrigger.CANCEL, JobTrigger.EXPIRE, JobTrigger.FAIL} <= set(row)


def test_what_the_tables_do_not_have_is_refused() -> None:
    """Every illegal transition raises and names itself."""
    for state, trigger in product(JobState, JobTrigger):
        if trigger in JOB_TABLE[state]:
            assert next_job_state(state, trigger) is JOB_TABLE[state][trigger]
        else:
            with pytest.raises(IllegalTransitionError, match=f"{trigger.name} in {state.name}"):
                next_job_state(state, trigger)
    for phase, cause in product(AttemptState, AttemptTrigger):
        if cause in ATTEMPT_TABLE[phase]:
            assert next_attempt_state(phase, cause) is ATTEMPT_TABLE[phase][cause]
        else:
            with pytest.raises(IllegalTransitionError, match=f"{cause.name} in {phase.name}"):
                next_attempt_state(phase, cause)


def test_the_document_is_drawn_from_the_tables() -> None:
    """`docs/state_machine.md` is what the generator draws now."""
    drawn = subprocess.run(
        [sys.executable, str(ROOT / "ci" / "draw_state_machine.py"), "--check"],
        check=False,
        capture_output=True,
        text=True,
    )

    assert drawn.returncode == 0, drawn.stderr
