"""The README keeps its table of stages. ORCH-3044."""

from ci.trace_requirements import ROOT

STAGES = [
    "admission",
    "catalog",
    "artifacts",
    "capabilities",
    "placement",
    "budgets",
    "policy",
    "BDD",
    "dashboards",
    "self-tests",
    "haiku",
]


def test_the_readme_has_a_row_for_each_stage() -> None:
    """ORCH-3044: the stages in order, and each says something."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## Stages")[1].split("##")[0]

    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]

    assert [row[0] for row in rows[1:]] == STAGES
    assert all(len(row) == 2 and row[1].strip() for row in rows)
