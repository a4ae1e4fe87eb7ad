"""Whether a client's tool may connect to an address. ORCH-3080, ORCH-3206.

    not enabled                          denied: the one switch for everything
    a pattern of `deny` fits             denied
    a pattern of `allow` fits            allowed
    otherwise                            denied

A pattern is a host: a name, an address, `*.` and a name for everything below it, or `*` for all.
With `SCHEME://` before it only that scheme fits; without, `allow` means https, and http to this
machine, while `deny` means every scheme.

Programs read odd addresses differently, and a decision holds for none of them but one. Only what
all of them read alike is judged at all; the rest is refused as no address. pool-managerd has a
smaller module for its own fetches: services do not import each other.
"""

import ipaddress
import re
from dataclasses import dataclass

URL_CHARS_MAX = 2_048
HOST_CHARS_MAX = 253
PORT_MAX = 65_535
ANY_HOST = "*"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31})://(\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]+))"
    r"(:(?P<port>[0-9]{1,5}))?([/?#][\x21-\x5b\x5d-\x7e]*)?",
    re.ASCII,
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# Source: URL standard (url.spec.whatwg.org), "ends in a number checker".
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Target:
    """What of an address is judged: scheme and host, in lower case, the host without a dot behind.

    Addresses of hosts have their shortest form; IPv4 in IPv6 is IPv4.
    """

    scheme: str
    host: str


@dataclass(frozen=True, slots=True)
class HostPattern:
    """A host, with an empty scheme where it says none; `text` is how it was written."""

    scheme: str
    host: str
    text: str


@dataclass(frozen=True, slots=True)
class OutboundPolicy:
    """The switch, and patterns."""

    enabled: bool = False
    allow: tuple[HostPattern, ...] = ()
    deny: tuple[HostPattern, ...] = ()


@dataclass(frozen=True, slots=True)
class OutboundDecision:
    """What was decided, by which rule; `sentence` tells people what to change, empty if allowed."""

    allowed: bool
    rule: str
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a text is not an address, or not a pattern: what follows "must"."""

    must: str


def read_target(url: str) -> Target | Unreadable:
    """Reads an address; nothing is resolved."""
    if len(url) > URL_CHARS_MAX:
        return Unreadable(f"have at most {URL_CHARS_MAX} characters, has {len(url)}")
    match = _URL.fullmatch(url)
    if match is None:
        return Unreadable(
            "be SCHEME://HOST, then :PORT, /PATH, ?QUERY or nothing: visible ASCII without "
            "backslashes, and no user before the host"
        )
    if int(match["port"] or 0) > PORT_MAX:
        return Unreadable(f"have a port of at most {PORT_MAX}")
    host = _ip_v6(match["v6"]) if match["v6"] else _plain_host(match["name"])
    return host if isinstance(host, Unreadable) else Target(match["scheme"].lower(), host)


def read_pattern(text: str) -> HostPattern | Unreadable:
    """Reads a pattern of `allow` or `deny`."""
    scheme, mark, rest = text.lower().rpartition("://")
    if mark and _SCHEME.fullmatch(scheme) is None:
        return Unreadable("begin with a scheme, such as https://, or with the host")
    if rest == ANY_HOST:
        return HostPattern(scheme, rest, text)
    below, name = ("*.", rest[2:]) if rest.startswith("*.") else ("", rest)
    name = name.removeprefix("[").removesuffix("]")
    host = _ip_v6(name) if ":" in name else _plain_host(name)
    if isinstance(host, Unreadable):
        return Unreadable("be HOST, *.HOST or *, with SCHEME:// before it or not, without a port")
    if below and _is_address(host):
        return Unreadable("name a host after *., not an address")
    return HostPattern(scheme, below + host, text)


def decide_outbound(policy: OutboundPolicy, target: Target) -> OutboundDecision:
    """Decides about one target. O(patterns)."""
    if not policy.enabled:
        return denied(target, "outbound.enabled", "outbound.enabled is false")
    for pattern in policy.deny:
        if pattern.scheme in ("", target.scheme) and _fits(pattern.host, target.host):
            return denied(target, f"outbound.deny {pattern.text}", "outbound.deny names it")
    for pattern in policy.allow:
        if _allows(pattern.scheme, target) and _fits(pattern.host, target.host):
            return OutboundDecision(True, f"outbound.allow {pattern.text}")
    shown = f"[{target.host}]" if ":" in target.host else target.host
    return denied(target, "outbound.allow", f"outbound.allow lacks {target.scheme}://{shown}")


def denied(target: Target, rule: str, why: str) -> OutboundDecision:
    """A refusal with its sentence."""
    sentence = f"connecting to {target.host} by {target.scheme} is not allowed: {why}"
    return OutboundDecision(False, rule, sentence)


def _allows(scheme: str, target: Target) -> bool:
    if scheme:
        return scheme == target.scheme
    return target.scheme == "https" or (target.scheme == "http" and target.host in LOOPBACK)


def _fits(pattern: str, host: str) -> bool:
    if pattern == ANY_HOST:
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern


def _plain_host(name: str) -> str | Unreadable:
    host = name.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > HOST_CHARS_MAX or not all(map(_LABEL.fullmatch, labels)):
        return Unreadable("name a host of letters, digits, hyphens and dots; others as punycode")
    # 2130706433, 0x7f.1 and 127.1 are 127.0.0.1 to some programs and names to others.
    if _NUMBER.fullmatch(labels[-1]) and not _is_address(host):
        return Unreadable("write an IPv4 address as four decimal numbers")
    return host


def _ip_v6(text: str) -> str | Unreadable:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return Unreadable("name a host or an IP address")
    mapped = address.ipv4_mapped
    return address.compressed if mapped is None else str(mapped)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
