"""A fresh journal of each kind."""

import typing
from pathlib import Path

import pytest

from orchestrator_core.store.port import (
    Store,
)
from tests.conformance.media import KINDS, Medium, medium_of


@pytest.fixture(params=KINDS)
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Medium:
    """A fresh medium of each kind."""
    return medium_of(request.param, tmp_path)


@pytest.fixture
async def store(medium: Medium) -> typing.AsyncIterator[Store]:
    """An open, empty journal."""
    store = medium.store()
    await store.open()
    yield store
    await store.close()
