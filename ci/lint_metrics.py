"""Compares a live scrape with the contract of its service in ci/metrics.lint.json. ORCH-3028.

    python ci/lint_metrics.py orchestratord http://127.0.0.1:7072/metrics

Names, types, labels, buckets, and how many values each label has. Exit code 1 with every problem.
"""

import json
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

CONTRACT = Path(__file__).with_name("metrics.lint.json")


def contract(service: str) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """The rows of a service by name, with those that every process has, and its label budgets."""
    document = json.loads(CONTRACT.read_text(encoding="utf-8"))
    mine = document["services"][service]
    rows = {row["name"]: row for row in [*mine["metrics"], *document["process"]]}
    return rows, mine["budgets"]


def families(text: str) -> dict[str, Metric]:
    """The families of a scrape by the name of the contract: counters with their _total."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
    }


def problems(service: str, text: str) -> list[str]:
    """What a scrape does that the contract does not say. A metric that is not there is none."""
    rows, limits = contract(service)
    found = []
    for name, family in families(text).items():
        if name not in rows:
            found.append(f"{name}: not in the contract")
        else:
            found.extend(f"{name}: {problem}" for problem in _family(family, rows[name], limits))
    return found


def _family(family: Metric, row: dict[str, Any], limits: dict[str, int]) -> Iterator[str]:
    if family.type != row["type"]:
        yield f"is a {family.type}, not a {row['type']}"
    values: dict[str, set[str]] = defaultdict(set)
    bounds: set[float] = set()
    for sample in family.samples:
        labels = dict(sample.labels)
        if "le" in labels:
            bounds.add(float(labels.pop("le")))
        if labels.keys() != set(row["labels"]):
            yield f"has the labels {sorted(labels)}, not {sorted(row['labels'])}"
            return
        for label, value in labels.items():
            values[label].add(value)
    if bounds - {float("inf")} != set(row.get("buckets", [])):
        yield f"has the buckets {sorted(bounds)}"
    for label, seen in values.items():
        # The empty value stands for "does not apply" and costs no budget.
        if len(seen - {""}) > limits[label]:
            yield f"has {len(seen)} values of {label}, more than {limits[label]}"


def main(argv: list[str]) -> int:
    """Lints one endpoint."""
    if len(argv) != 2:  # noqa: PLR2004 - a service and an address
        sys.exit(__doc__)
    service, url = argv
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the operator's own
        found = problems(service, answer.read().decode())
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
