"""Every log line has a constant name and a sentence for people. ORCH-3300."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
LOGGERS = {"log", "_log"}


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for service in ("orchestrator_core", "pool_managerd"):
        for path in sorted((ROOT / service).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _logs(node.func):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def _logs(called: ast.expr) -> bool:
    if not isinstance(called, ast.Attribute) or called.attr not in LEVELS:
        return False
    owner = called.value
    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
    return name in LOGGERS


CALLS = dict(_calls())


def test_the_lines_are_found() -> None:
    """A look that finds nothing would prove nothing."""
    assert len(CALLS) > 50


@pytest.mark.parametrize("where", CALLS)
def test_a_line_has_a_sentence(where: str) -> None:
    """Whoever reads it need not know the event's name.

    What a `Late` tells is seen in tests/unit/orchestrator_core/telemetry/test_logs.py.
    """
    keywords = {keyword.arg for keyword in CALLS[where].keywords}

    assert keywords & {"human", "late"}, where
