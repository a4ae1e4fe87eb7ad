"""The queries of all dashboards, and the alert rules."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ci.dashboards.boards import BOARDS

RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yml"
WINDOW = "60s"
COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) (?=[\d(])")


def panel_queries() -> dict[str, str]:
    """Expressions by the place at which they stand, with a window in place of Grafana's."""
    return {
        f"{board.name} / {panel.title} / {place}": query.expr.replace(
            "$__rate_interval", WINDOW
        ).replace("$pool", ".*")
        for board in BOARDS
        for row in board.rows
        for panel in row.panels
        for place, query in enumerate(panel.queries)
    }


def rules() -> list[Mapping[str, Any]]:
    """All alert rules."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def rule_queries() -> dict[str, str]:
    """Rules by name, with comparisons that answer 0 or 1 in place of those that drop series."""
    return {
        rule["alert"]: COMPARISON.sub(
            r" \1 bool ", re.sub(r"\[\d+[mh]\]", f"[{WINDOW}]", rule["expr"])
        )
        for rule in rules()
    }
