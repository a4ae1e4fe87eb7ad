"""Writes the Grafana dashboards into deploy/grafana/, from `ci.dashboards.boards`."""

from pathlib import Path
from typing import Final

from ci.dashboards.boards import BOARDS
from ci.dashboards.grafana import rendered

FOLDER: Final = Path(__file__).parents[1] / "deploy" / "grafana"


def main() -> None:
    """Replaces all of them; a file of a dashboard that is no more goes."""
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for board in BOARDS:
        (FOLDER / f"{board.name}.json").write_text(rendered(board), encoding="utf-8")


if __name__ == "__main__":
    main()
