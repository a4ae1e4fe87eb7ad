"""What the tests of the SQLite journal share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def fast_disk() -> Iterator[Path]:
    """A directory whose syncs cost nothing where there is one: these tests open many journals."""
    memory = Path("/dev/shm")  # noqa: S108 - a directory of its own below it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)
