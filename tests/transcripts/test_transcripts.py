"""Stories of the core as text: events in, effects out. See `notation` for how to read them.

`LLAMAORCH_UPDATE_TRANSCRIPTS=1` writes the effects anew; read the diff against the design before
keeping it.
"""

import os
from pathlib import Path

import pytest

from tests.transcripts.notation import Stage

STORIES = sorted((Path(__file__).parent / "stories").glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_core_plays_the_story(path: Path) -> None:
    """Every event of the story has exactly the effects that are written below it."""
    text = path.read_text(encoding="utf-8")

    played = Stage().play(text)

    if os.environ.get("LLAMAORCH_UPDATE_TRANSCRIPTS"):
        path.write_text(played, encoding="utf-8")
    assert played == text
