"""The steps of all journeys, and a world for each."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from orchestrator_core.telemetry.line_sink import told_late

# Steps are fixtures that are named after their sentences: only a star brings them along.
from tests.features.steps.access import *  # noqa: F403
from tests.features.steps.budgets import *  # noqa: F403
from tests.features.steps.catalog import *  # noqa: F403
from tests.features.steps.configuring import *  # noqa: F403
from tests.features.steps.errors import *  # noqa: F403
from tests.features.steps.jobs import *  # noqa: F403
from tests.features.steps.keeping import *  # noqa: F403
from tests.features.steps.operating import *  # noqa: F403
from tests.features.steps.output import *  # noqa: F403
from tests.features.steps.services import *  # noqa: F403
from tests.features.steps.watching import *  # noqa: F403
from tests.features.world import World

PROCESSES_TIMEOUT_S = 180


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """One scenario's world on a loop of its own; nothing outlives it."""
    with capture_logs(processors=[told_late]) as logs, asyncio.Runner() as runner:
        made = World(tmp_path, runner, logs)
        yield made
        runner.run(made.close())


def pytest_bdd_apply_tag(tag: str, function: Callable[..., object]) -> bool | None:
    """Tags name requirements, for docs/traceability.md; `processes` is what takes its time."""
    if tag == "processes":
        for mark in (pytest.mark.slow, pytest.mark.timeout(PROCESSES_TIMEOUT_S)):
            mark(function)
    return True if tag == "processes" or "-" in tag else None
