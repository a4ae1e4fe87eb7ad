"""Writes the tables of metrics and spans into docs/: each from the module that defines them."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestrator_core.telemetry import contract, names
from pool_managerd.telemetry import names as host_names
from pool_managerd.telemetry import rows

DOCS: Final = Path(__file__).parents[1] / "docs"
TABLES: Final[tuple[tuple[str, str, Callable[[], str]], ...]] = (
    ("traces.md", "generated: orchestratord", names.reference),
    ("traces.md", "generated: pool-managerd", host_names.reference),
    ("metrics.md", "generated: orchestratord", contract.reference),
    ("metrics.md", "generated: pool-managerd", rows.reference),
)
_END: Final = "<!-- end -->"


def main() -> None:
    """Replaces what stands between the marks."""
    for document, mark, table in TABLES:
        path = DOCS / document
        before, begin, rest = path.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition(_END)
        path.write_text(before + begin + table() + _END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
