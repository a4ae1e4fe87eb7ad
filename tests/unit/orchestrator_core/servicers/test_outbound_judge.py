"""Outbound policies that other packages bring. ORCH-3080."""

import importlib.metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from orchestrator_core.core.outbound import OutboundDecision, OutboundPolicy, Target
from orchestrator_core.servicers import outbound_judge
from orchestrator_core.servicers.outbound_judge import (
    NoSuchPolicyError,
    OutboundJudge,
    OutboundQuestion,
    outbound_policy,
)

ON = outbound_policy((), (), enabled=True)
QUESTION = OutboundQuestion(Target("https", "h"), tool="browser")


def only_browsers(_: OutboundPolicy, question: OutboundQuestion) -> OutboundDecision:
    """A policy of another package."""
    return OutboundDecision(question.tool == "browser", "browsers")


def broken(_: OutboundPolicy, __: OutboundQuestion) -> OutboundDecision:
    """A policy that fails."""
    raise RuntimeError("out of order")


def odd(_: OutboundPolicy, __: OutboundQuestion) -> Any:
    """A policy that answers in its own words."""
    return True


def truthy(_: OutboundPolicy, __: OutboundQuestion) -> Any:
    """A policy that means no, written as a text."""
    return OutboundDecision("no", "x" * 1000)  # type: ignore[arg-type]


def judge(monkeypatch: pytest.MonkeyPatch, name: str, policy: OutboundPolicy = ON) -> OutboundJudge:
    """One with a policy of this module."""
    entry = EntryPoint("ours", f"{__name__}:{name}", outbound_judge.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    return OutboundJudge(policy, "ours")


def test_a_policy_of_another_package_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told who asks."""
    ours = judge(monkeypatch, "only_browsers")

    assert ours.decide(QUESTION) == OutboundDecision(True, "browsers")
    other = ours.decide(OutboundQuestion(Target("https", "h"), tool="shell"))
    assert (other.allowed, other.sentence) == (False, "outbound.policy ours denied it")


@pytest.mark.parametrize("name", ["broken", "odd", "truthy"])
def test_a_policy_that_gives_no_decision_has_denied(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a decision that says so allows."""
    decision = judge(monkeypatch, name).decide(QUESTION)

    assert decision.allowed is False
    assert decision.sentence
    assert len(decision.rule) <= outbound_judge.TEXT_CHARS_MAX


def test_the_switch_goes_before_every_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """One switch for everything."""
    off = judge(monkeypatch, "only_browsers", OutboundPolicy())

    assert off.decide(QUESTION).rule == "outbound.enabled"


@pytest.mark.parametrize(
    ("name", "says"), [("missing", "cannot be loaded"), ("ON", "is not a function")]
)
def test_a_policy_that_cannot_be_loaded_is_named(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is served."""
    with pytest.raises(NoSuchPolicyError, match=f"outbound.policy: ours {says}"):
        judge(monkeypatch, name)


def test_a_package_that_breaks_when_it_is_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it raises is a problem of the configuration: a reload ends no server. HME-003."""
    (tmp_path / "breaks_when_imported.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("ours", "breaks_when_imported:decide", outbound_judge.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])

    with pytest.raises(NoSuchPolicyError, match=r"ours cannot be loaded.*no licence"):
        OutboundJudge(ON, "ours")
