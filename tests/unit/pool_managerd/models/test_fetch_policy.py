"""Plug-ins that decide about fetches. ORCH-3080."""

import importlib.metadata
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from pool_managerd.config.problems import ConfigError
from pool_managerd.core.outbound import OutboundDecision, OutboundPolicy, decide_outbound
from pool_managerd.models.fetch_policy import GROUP, Plugin, decide_fetch, load_plugin

URL = "https://mirror.example/m.gguf"
ON = OutboundPolicy(enabled=True, deny=("mirror.example",))
asked: list[str] = []


def allows(_: OutboundPolicy, url: str) -> OutboundDecision:
    """Goes before the patterns."""
    asked.append(url)
    return OutboundDecision(True, "another.example", "mirrors", "")


def breaks(_: OutboundPolicy, url: str) -> OutboundDecision:
    """Fails."""
    raise RuntimeError(url)


def nearly(_: OutboundPolicy, __: str) -> OutboundDecision:
    """Was written without types."""
    return OutboundDecision("yes", "", "mirrors")  # type: ignore[arg-type]


def test_a_plug_in_decides_in_place_of_the_patterns() -> None:
    """The host that is told of is that of the address, whatever the plug-in says."""
    found = decide_fetch(ON, allows, URL)

    assert found == OutboundDecision(True, "mirror.example", "outbound.policy mirrors")
    assert not decide_outbound(ON, URL).allowed


@pytest.mark.parametrize(
    ("policy", "url"),
    [
        (OutboundPolicy(enabled=False), URL),
        (ON, "http://mirror.example/m.gguf"),
        (ON, "https://[broken"),
    ],
)
def test_no_plug_in_is_asked_before_the_switch_and_the_scheme(
    policy: OutboundPolicy, url: str
) -> None:
    """ORCH-3206: one switch for everything."""
    asked.clear()

    assert not decide_fetch(policy, allows, url).allowed
    assert asked == []


@pytest.mark.parametrize("plugin", [breaks, lambda *_: None, nearly])
def test_what_is_no_clear_yes_is_a_no(plugin: Plugin) -> None:
    """One that raises, answers nothing, or something like True."""
    found = decide_fetch(ON, plugin, URL)

    assert not found.allowed
    assert found.sentence


def test_a_policy_that_is_not_there_is_told_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the start, not at the first fetch."""
    entries = [EntryPoint(name, f"{__name__}:{name}", GROUP) for name in ("allows", "gone", "URL")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)

    assert load_plugin("patterns") is None
    assert load_plugin("allows") is not None
    with pytest.raises(ConfigError, match="no policy mirror is installed; use URL, allows, gone"):
        load_plugin("mirror")
    with pytest.raises(ConfigError, match="gone cannot be loaded"):
        load_plugin("gone")
    with pytest.raises(ConfigError, match="URL is not a function"):
        load_plugin("URL")


def test_a_package_that_breaks_when_it_is_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it raises is a problem of the configuration: a reload ends no server. HME-003."""
    (tmp_path / "breaks_at_import.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [EntryPoint("ours", "breaks_at_import:decide", GROUP)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)

    with pytest.raises(ConfigError, match=r"ours cannot be loaded.*no licence"):
        load_plugin("ours")
