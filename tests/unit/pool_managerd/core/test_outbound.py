"""Which hosts may be fetched from. ORCH-3080, ORCH-3206."""

import pytest

from pool_managerd.core.outbound import OutboundPolicy, decide_outbound

POLICY = OutboundPolicy(
    enabled=True, allow=("models.example", "*.cdn.example", "127.0.0.1"), deny=("bad.cdn.example",)
)


@pytest.mark.parametrize(
    ("url", "allowed", "rule"),
    [
        ("https://models.example/a", True, "outbound.allow models.example"),
        ("https://MODELS.example.:444/a", True, "outbound.allow models.example"),
        ("https://a.b.cdn.example/x?sig=1", True, "outbound.allow *.cdn.example"),
        ("https://cdn.example/x", False, "outbound.allow"),
        ("https://evilcdn.example/x", False, "outbound.allow"),
        ("https://models.example.evil/x", False, "outbound.allow"),
        ("https://models.example@evil/x", False, "outbound.allow"),
        ("http://models.example/a", False, "scheme"),
        ("http://127.0.0.1:80/a", True, "outbound.allow 127.0.0.1"),
        ("ftp://models.example/a", False, "scheme"),
        ("https://[models.example/a", False, "malformed"),
        ("", False, "scheme"),
        ("https://\u24d1ad.cdn.example/x", False, "malformed"),
        ("https://%62ad.cdn.example/x", False, "malformed"),
    ],
)
def test_an_address_is_judged_by_its_host(url: str, allowed: bool, rule: str) -> None:
    """Denied unless named; encrypted beyond this machine."""
    decision = decide_outbound(POLICY, url)

    assert (decision.allowed, decision.rule) == (allowed, rule)
    assert bool(decision.sentence) != allowed


def test_a_denied_host_is_denied_though_it_is_allowed() -> None:
    """The list of denied hosts goes before the other."""
    decision = decide_outbound(POLICY, "https://bad.cdn.example/x")

    assert (decision.allowed, decision.rule) == (False, "outbound.deny bad.cdn.example")


def test_one_switch_refuses_everything_and_names_itself() -> None:
    """Off by default."""
    decision = decide_outbound(OutboundPolicy(allow=("h",)), "https://h/a")

    assert not decision.allowed
    assert decision.sentence == (
        "fetching from h is not allowed: set outbound.enabled = true to allow fetching"
    )
