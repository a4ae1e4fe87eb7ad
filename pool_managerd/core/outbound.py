"""Whether this host may connect to another one to fetch a model. ORCH-3080, ORCH-3206.

    not enabled                          denied: the one switch for everything
    a pattern of `deny` fits             denied
    a pattern of `allow` fits            allowed
    otherwise                            denied

A pattern is a host name, or `*.` and a name: everything below it. Every address of a fetch is
judged, also those that a server redirects to.
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pool_managerd.core.model_ref import is_loopback

_HOST = re.compile(r"[a-z0-9._:-]*")


@dataclass(frozen=True, slots=True)
class OutboundPolicy:
    """The switch, and patterns of hosts."""

    enabled: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutboundDecision:
    """What was decided about a host, by which rule; `sentence` tells people what to change."""

    allowed: bool
    host: str
    rule: str
    sentence: str = ""


def decide_outbound(policy: OutboundPolicy, url: str) -> OutboundDecision:
    """Decides about one address. Encrypted ones alone pass, save those of this machine."""
    try:
        parts = urlsplit(url)
        host = _plain_host(parts.hostname or "")
    except ValueError:
        return OutboundDecision(False, "", "malformed", "the address is not a URL of a plain host")
    if not policy.enabled:
        return _denied(host, "outbound.enabled", "set outbound.enabled = true to allow fetching")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        return _denied(host, "scheme", "only https: addresses are fetched from")
    for pattern in policy.deny:
        if _fits(pattern, host):
            return _denied(host, f"outbound.deny {pattern}", "outbound.deny names it")
    for pattern in policy.allow:
        if _fits(pattern, host):
            return OutboundDecision(True, host, f"outbound.allow {pattern}")
    return _denied(host, "outbound.allow", f"add {host} to outbound.allow")


def _plain_host(name: str) -> str:
    """The name as patterns are compared with it.

    Whoever connects may read a name that is not plain ASCII as another one.
    """
    host = name.rstrip(".").lower()
    if _HOST.fullmatch(host) is None:
        raise ValueError(name)
    return host


def _denied(host: str, rule: str, why: str) -> OutboundDecision:
    return OutboundDecision(False, host, rule, f"fetching from {host} is not allowed: {why}")


def _fits(pattern: str, host: str) -> bool:
    pattern = pattern.lower()
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern
