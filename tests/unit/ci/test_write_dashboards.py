"""The dashboards that are shipped are those that `ci.dashboards` describes."""

import json

import pytest

from ci.dashboards.board import Board
from ci.dashboards.boards import BOARDS
from ci.dashboards.grafana import rendered
from ci.write_dashboards import FOLDER

COLUMNS = 24


def test_shipped_files_are_what_is_described() -> None:
    """No more and no fewer; `make docs` writes them."""
    shipped = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}

    assert shipped == {board.name: rendered(board) for board in BOARDS}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_panel_says_what_it_shows_and_fills_its_row(board: Board) -> None:
    """Rows have no gaps, titles are said once, and who narrows to pools has something to narrow."""
    titles = [panel.title for row in board.rows for panel in row.panels]
    assert len(set(titles)) == len(titles)
    for row in board.rows:
        assert all(panel.about.endswith(".") for panel in row.panels)
        assert sum(panel.width for panel in row.panels) % COLUMNS == 0
    narrowed = "$pool" in rendered(board)
    assert narrowed == board.pools


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_query_asks_the_source_that_the_reader_chose(board: Board) -> None:
    """A dashboard works with whatever the data source is called where it is imported."""
    made = json.loads(rendered(board))
    panels = [panel for panel in made["panels"] if panel["type"] != "row"]

    assert len(panels) == sum(len(row.panels) for row in board.rows)
    for panel in panels:
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    names = [variable["name"] for variable in made["templating"]["list"]]
    assert names == (["datasource", "pool"] if board.pools else ["datasource"])
