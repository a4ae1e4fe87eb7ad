"""The metrics contract as data: every name, type, label and bucket. ORCH-3028.

`ci/metrics.lint.json` holds the same contract for the linter; a test compares the two.
"""

from typing import Final

from orchestrator_core.telemetry.job_rows import JOB_ROWS
from orchestrator_core.telemetry.service_rows import SERVICE_ROWS

METRICS: Final = (*JOB_ROWS, *SERVICE_ROWS)


def reference() -> str:
    """The table of metrics for docs/metrics.md, as Markdown."""
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for row in METRICS:
        labels = ", ".join(row.labels)
        lines.append(f"| `{row.name}` | {row.kind.value} | {labels} | {row.help} |")
    return "\n".join(lines) + "\n"
