"""What is wrong with a configuration, as a test writes it into a file."""

from pathlib import Path

import pytest

from orchestrator_core.config.loading import load_config
from orchestrator_core.config.problems import ConfigError


def problems_of(text: str, tmp_path: Path, environ: dict[str, str] | None = None) -> str:
    """What is wrong with a file, one problem a line."""
    path = tmp_path / "o.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(path, environ or {})
    assert str(raised.value) == "\n".join(raised.value.problems)
    return str(raised.value)
