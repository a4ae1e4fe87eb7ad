"""The contract file and the documents say what the code does."""

import json
from pathlib import Path

import pytest

from orchestrator_core.telemetry import contract as orchestratord
from orchestrator_core.telemetry import names
from orchestrator_core.telemetry.metric_row import BUDGETS
from pool_managerd.telemetry import names as host_names
from pool_managerd.telemetry import rows as pool_managerd

ROOT = Path(__file__).parents[4]
PARTS = {
    "orchestratord": (orchestratord.METRICS, BUDGETS),
    "pool-managerd": (pool_managerd.METRICS, pool_managerd.BUDGETS),
}


@pytest.mark.parametrize(
    ("document", "mark", "table"),
    [
        ("traces.md", "generated: orchestratord", names.reference()),
        ("traces.md", "generated: pool-managerd", host_names.reference()),
        ("metrics.md", "generated: orchestratord", orchestratord.reference()),
        ("metrics.md", "generated: pool-managerd", pool_managerd.reference()),
    ],
)
def test_the_table_in_the_document_is_generated(document: str, mark: str, table: str) -> None:
    """`make docs` writes it."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")

    assert text.partition(f"<!-- {mark} -->\n")[2].partition("<!-- end -->")[0] == table


@pytest.mark.parametrize("service", PARTS)
def test_the_code_has_exactly_the_metrics_of_the_contract(service: str) -> None:
    """A change of a name, label or bucket is a change of the contract, made on purpose."""
    document = json.loads((ROOT / "ci" / "metrics.lint.json").read_text(encoding="utf-8"))
    contract, (rows, budgets) = document["services"][service], PARTS[service]

    assert contract["metrics"] == [
        {
            "name": row.name,
            "type": row.kind.value,
            "labels": list(row.labels),
            **({"buckets": list(row.buckets)} if row.buckets else {}),
        }
        for row in rows
    ]
    assert contract["budgets"] == budgets


def test_no_name_means_two_things() -> None:
    """Sums over both services count nothing twice."""
    (mine, _), (theirs, _) = PARTS.values()

    assert not {row.name for row in mine} & {row.name for row in theirs}


def test_every_span_name_has_one_row() -> None:
    """A name that is looked up finds one meaning."""
    listed = [row.name for row in names.SPANS]

    assert len(listed) == len(set(listed))
