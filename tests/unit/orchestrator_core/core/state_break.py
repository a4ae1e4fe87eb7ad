"""A step that breaks, on purpose."""

import pytest

from orchestrator_core.core import intake


class BrokenStepError(RuntimeError):
    """What a bug in the core would raise."""


def break_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every enqueue raise from within the step."""

    def broken(*_: object) -> None:
        raise BrokenStepError("on purpose")

    monkeypatch.setattr(intake, "enqueue", broken)
