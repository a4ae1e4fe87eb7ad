"""Configurations as text: printed, read back, documented."""

from pathlib import Path

import pytest

from orchestrator_core.config.loading import load, load_config
from orchestrator_core.config.text import reference, to_toml

DOCUMENT = Path(__file__).parents[4] / "docs" / "configuration.md"


def test_the_printed_configuration_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed is a complete file, and the program goes no further."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--set", "queue.capacity=3", "--set", 'store.path=a "b" \\c.db']
    config = load(arguments, {})

    with pytest.raises(SystemExit) as raised:
        load([*arguments, "--print-config"], {})

    assert raised.value.code == 0
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(tmp_path / "printed.toml", {}) == config


def test_the_document_lists_every_key() -> None:
    """docs/configuration.md is generated: `make docs` when this fails."""
    document = DOCUMENT.read_text(encoding="utf-8")
    begin, end = "<!-- orchestratord: generated -->\n", "<!-- orchestratord: end -->"

    assert document.partition(begin)[2].partition(end)[0].strip() == reference().strip()


def test_the_document_says_which_keys_have_no_default() -> None:
    """HME-003: a price table needs both prices; no name of the validator's gets into the page."""
    rows = {line.split("|")[1].strip(): line for line in reference().splitlines()}

    assert "| required | 0 to" in rows["`admission.prices.NAME.input_micros_per_1k_tokens`"]
    assert "| unset |" in rows["`throttle.identities.NAME.queued_jobs`"]
    assert not any(word in reference() for word in ("Pydantic", "<", "None", "factory"))


def test_lists_are_printed_and_read_back(tmp_path: Path) -> None:
    """`--print-config` is a complete file, lists too."""
    config = load_config(None, {}, ['outbound.allow=["a.example", "*.b.example"]'])
    path = tmp_path / "printed.toml"

    path.write_text(to_toml(config), encoding="utf-8")

    assert load_config(path, {}).outbound.allow == ("a.example", "*.b.example")
