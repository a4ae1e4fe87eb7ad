"""A taped core: what it decided is decided again, and anything else is noticed."""

from faults.simulation.tape import TapedCore
from orchestrator_core.core.catalog_model import ModelCard, ModelState
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.events import ModelPut, ModelStateSet, Tick


def _taped() -> TapedCore:
    """A core with a model that is retired; its grace is over in time."""
    core = TapedCore(CoreConfig())
    core.step(ModelPut(ModelCard("m"), 0, 1), 1_000)
    core.step(ModelStateSet("m", ModelState.RETIRED, 0, 500, "", 2), 1_100)
    core.step(Tick(), 1_700)
    return core


def test_the_same_is_decided_again() -> None:
    """From a checkpoint after the operator's first act."""
    core = _taped()

    assert core.catalog.closed
    assert core.replayed() == ""


def test_another_decision_is_noticed() -> None:
    """The step and both decisions are told."""
    core = _taped()
    event, now_ms, lines = core._steps[0]
    core._steps[0] = event, now_ms, lines[1:]

    assert core.replayed().startswith("step 0, ModelStateSet(")


def test_a_state_that_changed_outside_of_a_step_is_noticed() -> None:
    """Although every decision is the same."""
    core = _taped()
    core._state.catalog.closed.clear()

    assert core.replayed() == "the state is another at the end"


def test_without_an_operator_nothing_is_kept() -> None:
    """Most of the seeds' time is not spent on this."""
    core = TapedCore(CoreConfig())
    core.step(Tick(), 1_000)

    assert core._steps == []
    assert core.replayed() == ""
