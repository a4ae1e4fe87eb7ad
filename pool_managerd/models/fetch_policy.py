"""Who decides about a fetch: the patterns of the configuration, or a plug-in.

A package declares an entry point in the group `llamaorch.fetch_policies`; `outbound.policy` names
it. It loads a function that is given the configured policy and the address, and returns an
`OutboundDecision`. It runs on the event loop: no I/O, no waiting. ORCH-3080.

    [project.entry-points."llamaorch.fetch_policies"]
    our-mirror = "our_package.outbound:decide"
"""

import importlib.metadata
from collections.abc import Callable

from pool_managerd.config.problems import ConfigError
from pool_managerd.core.outbound import OutboundDecision, OutboundPolicy, decide_outbound
from pool_managerd.telemetry import log

GROUP = "llamaorch.fetch_policies"
PATTERNS = "patterns"
TEXT_CHARS_MAX = 256
# The switch, and what no plug-in may allow.
_FIRST = frozenset({"malformed", "outbound.enabled", "scheme"})

Plugin = Callable[[OutboundPolicy, str], OutboundDecision]


def load_plugin(name: str) -> Plugin | None:
    """The function of a plug-in; None for `patterns`.

    Raises:
        ConfigError: when there is none of that name, or it cannot be imported.
    """
    if name == PATTERNS:
        return None
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted({PATTERNS, *found}))
        raise ConfigError([f"outbound.policy: no policy {name} is installed; use {known}"])
    try:
        plugin: Plugin = found[name].load()
    except Exception as error:
        # A package may raise anything when it is imported, and a reload must not end the server.
        raise ConfigError([f"outbound.policy: {name} cannot be loaded: {error!r}"]) from error
    if not callable(plugin):
        raise ConfigError([f"outbound.policy: {name} is not a function"])
    return plugin


def decide_fetch(policy: OutboundPolicy, plugin: Plugin, url: str) -> OutboundDecision:
    """Decides about one address; the switch goes before a plug-in, and one that fails denies."""
    found = decide_outbound(policy, url)
    if found.rule in _FIRST:
        return found
    host = found.host
    try:
        told = plugin(policy, url)
    except Exception as error:  # noqa: BLE001 - whatever it raises, it has not allowed
        log.error(
            "outbound_policy_failed",
            exc_info=error,
            human="The policy of fetches failed, which counts as a denial.",
        )
        return _denied(host, "its policy failed")
    if not isinstance(told, OutboundDecision):
        return _denied(host, "its policy gave no decision")
    # Only True allows: a plug-in may have been written without types.
    allowed = told.allowed is True
    sentence = "" if allowed else str(told.sentence or "outbound.policy denied it")[:TEXT_CHARS_MAX]
    return OutboundDecision(
        allowed, host, f"outbound.policy {told.rule}"[:TEXT_CHARS_MAX], sentence
    )


def _denied(host: str, why: str) -> OutboundDecision:
    return OutboundDecision(
        False, host, "outbound.policy", f"fetching from {host} is not allowed: {why}"
    )
