"""The contract file and the documents say what the code does."""

import json
from pathlib import Path

import pytest

from orchestrator_core.telemetry import instruments, names

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("document", "table"),
    [("traces.md", names.reference()), ("metrics.md", instruments.reference())],
)
def test_the_table_in_the_document_is_generated(document: str, table: str) -> None:
    """Print `reference()` of the module into the document when this fails."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")

    assert text.partition("<!-- generated -->\n")[2].partition("<!-- end -->")[0] == table


def test_the_code_has_exactly_the_metrics_of_the_contract() -> None:
    """A change of a name, label or bucket is a change of the contract, made on purpose."""
    contract = json.loads((ROOT / "ci" / "metrics.lint.json").read_text(encoding="utf-8"))

    assert contract["metrics"] == [
        {
            "name": row.name,
            "type": row.kind.value,
            "labels": list(row.labels),
            **({"buckets": list(row.buckets)} if row.buckets else {}),
        }
        for row in instruments.METRICS
    ]
    assert contract["budgets"] == instruments.BUDGETS


def test_every_span_name_has_one_row() -> None:
    """A name that is looked up finds one meaning."""
    listed = [row.name for row in names.SPANS]

    assert len(listed) == len(set(listed))
