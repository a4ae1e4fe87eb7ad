"""Which addresses clients' tools may connect to. ORCH-3080, ORCH-3206."""

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.core.outbound import (
    URL_CHARS_MAX,
    HostPattern,
    OutboundPolicy,
    Target,
    Unreadable,
    decide_outbound,
    read_pattern,
    read_target,
)


def patterns(*texts: str) -> tuple[HostPattern, ...]:
    """Patterns that can be read."""
    read = [read_pattern(text) for text in texts]
    return tuple(pattern for pattern in read if isinstance(pattern, HostPattern))


POLICY = OutboundPolicy(
    enabled=True,
    allow=patterns("docs.example", "*.Cdn.example", "ftp://*", "http://plain.example", "127.0.0.1"),
    deny=patterns("bad.cdn.example", "ftp://*.evil.example", "[::ffff:10.0.0.1]"),
)


def test_a_denied_host_is_denied_though_it_is_allowed() -> None:
    """The list of denied hosts goes before the other."""
    decision = decide_outbound(POLICY, Target("https", "bad.cdn.example"))

    assert (decision.allowed, decision.rule) == (False, "outbound.deny bad.cdn.example")


@pytest.mark.parametrize(
    ("url", "allowed", "rule"),
    [
        ("https://docs.example/a?b=1#c", True, "outbound.allow docs.example"),
        ("HTTPS://DOCS.example.:8443", True, "outbound.allow docs.example"),
        ("https://a.b.cdn.example", True, "outbound.allow *.Cdn.example"),
        ("https://cdn.example", False, "outbound.allow"),
        ("https://evilcdn.example", False, "outbound.allow"),
        ("https://docs.example.evil", False, "outbound.allow"),
        ("https://bad.cdn.example", False, "outbound.deny bad.cdn.example"),
        ("gopher://bad.cdn.example", False, "outbound.deny bad.cdn.example"),
        ("http://docs.example", False, "outbound.allow"),
        ("http://plain.example", True, "outbound.allow http://plain.example"),
        ("https://plain.example", False, "outbound.allow"),
        ("ftp://anything.example", True, "outbound.allow ftp://*"),
        ("ftp://a.evil.example", False, "outbound.deny ftp://*.evil.example"),
        ("http://127.0.0.1:80/a", True, "outbound.allow 127.0.0.1"),
        ("http://[::ffff:127.0.0.1]/", True, "outbound.allow 127.0.0.1"),
        ("ftp://10.0.0.1", False, "outbound.deny [::ffff:10.0.0.1]"),
    ],
)
def test_scheme_and_host_decide(url: str, allowed: bool, rule: str) -> None:
    """Denied unless named, encrypted unless a scheme is named, and `deny` goes first."""
    target = read_target(url)

    assert isinstance(target, Target)
    decision = decide_outbound(POLICY, target)
    assert (decision.allowed, decision.rule) == (allowed, rule)
    assert bool(decision.sentence) != allowed


def test_one_switch_refuses_everything_and_names_itself() -> None:
    """Off by default, whatever is allowed."""
    decision = decide_outbound(OutboundPolicy(allow=patterns("*")), Target("https", "h"))

    assert (decision.allowed, decision.rule) == (False, "outbound.enabled")
    assert decision.sentence == (
        "connecting to h by https is not allowed: outbound.enabled is false"
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "docs.example",
        "//docs.example/a",
        "mailto:a@docs.example",
        "https:///a",
        "https://:80",
        "https://[docs.example/a",
        "https://[::1]docs.example/",
        "https://docs.example:99999/",
        "https://docs.example:x/",
        "https://user@docs.example/",
        "https://docs.example@evil/x",
        "https://evil\\@docs.example/",
        "https://docs.example/a\\b",
        "https://do\tcs.example/",
        "https://docs.example/a b",
        "https://docs..example/",
        "https://-docs.example/",
        "https://\u24d3ocs.example",
        "https://%64ocs.example",
        "https://[fe80::1%25eth0]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "https://docs.example/" + "a" * URL_CHARS_MAX,
    ],
)
def test_what_programs_read_differently_is_no_address(url: str) -> None:
    """A tool might connect elsewhere than the decision was about."""
    assert isinstance(read_target(url), Unreadable)


@given(st.from_regex(r"https?://[a-z0-9.:@\[\]\\%/?#-]{1,24}", fullmatch=True))
def test_the_host_is_the_one_that_others_read(url: str) -> None:
    """The standard library, which tools use, connects to the host that was judged."""
    target = read_target(url)

    if isinstance(target, Unreadable):
        return
    theirs = (urlsplit(url).hostname or "").removesuffix(".")
    if ":" in theirs:
        address = ipaddress.IPv6Address(theirs)
        theirs = str(address.ipv4_mapped or address)
    assert (target.scheme, target.host) == (url.partition(":")[0], theirs)


@pytest.mark.parametrize(
    "text",
    ["", "*.", "a*", "*.10.0.0.1", "docs.example:443", "://a", "https://", "a/b", "*.*", "1"],
)
def test_a_pattern_that_fits_nothing_is_none(text: str) -> None:
    """A mistake in `deny` would let through what it was to stop."""
    assert isinstance(read_pattern(text), Unreadable)
