"""Writes the tables of settings into the docs from the schemas; tests fail when they are stale."""

from pathlib import Path

from orchestrator_core.config.text import reference
from pool_managerd.config.text import configuration_table

POOL_MANAGER_PAGE = Path(__file__).resolve().parent.parent / "docs" / "pool-managerd.md"
TABLE_HEAD = "| key | type |"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- orchestratord: generated -->", "<!-- orchestratord: end -->"


def main() -> None:
    """Replaces what stands between the two markers, and the table that ends the other page."""
    text = POOL_MANAGER_PAGE.read_text(encoding="utf-8").partition(TABLE_HEAD)[0]
    POOL_MANAGER_PAGE.write_text(text + configuration_table(), encoding="utf-8")
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{reference().strip()}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
