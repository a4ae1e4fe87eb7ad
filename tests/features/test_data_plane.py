"""The life of jobs, as the features in data_plane/ tell it."""

import re
from pathlib import Path

from pytest_bdd import scenarios

from orchestrator_core.core.outcome import Reason
from tests.features.steps.situations import SITUATIONS

ERRORS = Path(__file__).parent / "data_plane" / "errors.feature"
# A bug in us cannot be asked for; what is not implemented is in no stable list.
NO_STORY = {Reason.INTERNAL, Reason.UNIMPLEMENTED}

scenarios("data_plane")


def test_every_reason_has_its_story() -> None:
    """Whoever adds an error tells how a client meets it; no situation is left untold."""
    rows = re.findall(r"^ +\| ([^|]+?) +\| ([A-Z_]+) ", ERRORS.read_text("utf-8"), re.MULTILINE)

    assert {reason for _, reason in rows} == {reason.value for reason in set(Reason) - NO_STORY}
    assert {case for case, _ in rows} == set(SITUATIONS)
