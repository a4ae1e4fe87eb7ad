"""Who decides about outbound connections: the patterns of the configuration, or a plug-in.

A package declares an entry point in the group `llamaorch.outbound_policies`; `outbound.policy`
names it. It loads a function that is given the configured policy and a question, and returns an
`OutboundDecision`. It runs on the event loop: no I/O, no waiting. ORCH-3080.

    [project.entry-points."llamaorch.outbound_policies"]
    our-proxy = "our_package.outbound:decide"
"""

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from orchestrator_core.config.access import OutboundTable
from orchestrator_core.core.outbound import (
    HostPattern,
    OutboundDecision,
    OutboundPolicy,
    Target,
    Unreadable,
    decide_outbound,
    denied,
    read_pattern,
)
from orchestrator_core.errors import OrchestratorError

GROUP = "llamaorch.outbound_policies"
PATTERNS = "patterns"
TEXT_CHARS_MAX = 256

_log = structlog.get_logger("orchestratord")


@dataclass(frozen=True, slots=True)
class OutboundQuestion:
    """What is to be connected to, and on whose behalf; what nobody told is empty."""

    target: Target
    job_id: str = ""
    session_id: str = ""
    tool: str = ""


Plugin = Callable[[OutboundPolicy, OutboundQuestion], OutboundDecision]


class NoSuchPolicyError(OrchestratorError):
    """No policy of the configured name can be loaded; the message says which are there."""


class OutboundJudge:
    """Decides; the switch goes before every plug-in, and one that fails has denied."""

    def __init__(self, policy: OutboundPolicy, name: str = PATTERNS) -> None:
        """Loads the plug-in.

        Raises:
            NoSuchPolicyError: when there is none of that name, or it cannot be imported.
        """
        self._policy = policy
        self._name = name
        self._plugin = None if name == PATTERNS else _load(name)

    def decide(self, question: OutboundQuestion) -> OutboundDecision:
        """Decides about one question."""
        if self._plugin is None or not self._policy.enabled:
            return decide_outbound(self._policy, question.target)
        rule = f"outbound.policy {self._name}"
        try:
            found = self._plugin(self._policy, question)
        except Exception as error:  # noqa: BLE001 - whatever it raises, it has not allowed
            _log.error(
                "outbound_policy_failed",
                policy=self._name,
                exc_info=error,
                human=f"The outbound policy {self._name} failed, which counts as a denial.",
            )
            return denied(question.target, rule, "its policy failed")
        if not isinstance(found, OutboundDecision):
            return denied(question.target, rule, "its policy gave no decision")
        # Only True allows: a plug-in may have been written without types.
        allowed = found.allowed is True
        return OutboundDecision(
            allowed,
            str(found.rule or rule)[:TEXT_CHARS_MAX],
            "" if allowed else str(found.sentence or f"{rule} denied it")[:TEXT_CHARS_MAX],
        )


def configured_judge(table: OutboundTable) -> OutboundJudge:
    """The judge that a configuration asks for. Raises `NoSuchPolicyError`."""
    patterns = outbound_policy(table.allow, table.deny, enabled=table.enabled)
    return OutboundJudge(patterns, table.policy)


def outbound_policy(allow: Iterable[str], deny: Iterable[str], *, enabled: bool) -> OutboundPolicy:
    """The policy of configured patterns, which the configuration has checked."""
    return OutboundPolicy(enabled, _patterns(allow), _patterns(deny))


def _patterns(texts: Iterable[str]) -> tuple[HostPattern, ...]:
    found = []
    for text in texts:
        pattern = read_pattern(text)
        assert not isinstance(pattern, Unreadable), text
        found.append(pattern)
    return tuple(found)


def _load(name: str) -> Plugin:
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted({PATTERNS, *found}))
        raise NoSuchPolicyError(f"outbound.policy: no policy {name} is installed; use {known}")
    try:
        plugin: Plugin = found[name].load()
    except Exception as error:
        # A package may raise anything when it is imported, and a reload must not end the server.
        raise NoSuchPolicyError(f"outbound.policy: {name} cannot be loaded: {error!r}") from error
    if not callable(plugin):
        raise NoSuchPolicyError(f"outbound.policy: {name} is not a function")
    return plugin
