"""Writes the table of docs/configuration.md from the schema; a test fails when it is stale."""

from pathlib import Path

from orchestrator_core.config import reference

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- orchestratord: generated -->", "<!-- orchestratord: end -->"


def main() -> None:
    """Replaces what stands between the two markers."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{reference().strip()}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
