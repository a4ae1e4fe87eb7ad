"""The steps of all journeys, and a world for each."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

# Steps are fixtures that are named after their sentences: only a star brings them along.
from tests.features.steps.access import *  # noqa: F403
from tests.features.steps.budgets import *  # noqa: F403
from tests.features.steps.errors import *  # noqa: F403
from tests.features.steps.jobs import *  # noqa: F403
from tests.features.steps.operating import *  # noqa: F403
from tests.features.steps.output import *  # noqa: F403
from tests.features.steps.services import *  # noqa: F403
from tests.features.steps.watching import *  # noqa: F403
from tests.features.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """One scenario's world on a loop of its own; nothing outlives it."""
    with asyncio.Runner() as runner:
        made = World(tmp_path, runner)
        yield made
        runner.run(made.close())


def pytest_bdd_apply_tag(tag: str, function: object) -> bool | None:
    """Tags name requirements, for docs/traceability.md; they are no marks."""
    return True if "-" in tag else None
