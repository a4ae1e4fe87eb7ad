"""Which names a browser may call this machine by."""

import pytest

from orchestrator_core.telemetry.http import loopback_name

OURS = (
    "127.0.0.1",
    "127.0.0.1:7072",
    "127.8.9.1",
    "localhost",
    "LOCALHOST:1",
    "localhost.:80",
    "[::1]",
    "[::1]:7072",
    "::1",
)
OTHERS = (
    "",
    "evil.example",
    "evil.example:7072",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "10.0.0.1",
    "[fe80::1]:80",
    "0.0.0.0",  # noqa: S104 - a name in a request, nothing is bound
    "127.0.0.1@evil.example",
    "2130706433",
)


@pytest.mark.parametrize("host", OURS)
def test_this_machine_may_be_named(host: str) -> None:
    """Loopback addresses and localhost, through a tunnel on any port."""
    assert loopback_name(host)


@pytest.mark.parametrize("host", OTHERS)
def test_other_names_may_not(host: str) -> None:
    """A name that somebody bound to a loopback address is not ours."""
    assert not loopback_name(host)
