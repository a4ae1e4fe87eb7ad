"""Every TOML example of the documents is a configuration that a service takes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator_core.config.loading import load_config as load_orchestrator
from pool_managerd.config.loading import load_config as load_pool_manager

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_POOL = '[[pools]]\npool_id = "p"\n'
_ENGINE = 'engine = { kind = "mock", model_id = "m" }\n'


def examples() -> Iterator[Any]:
    """All blocks of all documents."""
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")]):
        for number, match in enumerate(_BLOCK.finditer(path.read_text(encoding="utf-8")), 1):
            yield pytest.param(match[1], id=f"{path.stem}-{number}")


@pytest.mark.parametrize("text", list(examples()))
def test_an_example_is_a_configuration(text: str, tmp_path: Path) -> None:
    """An engine's table alone is completed by the pool around it; secrets are in place."""
    path = tmp_path / "example.toml"
    secrets = dict.fromkeys(re.findall(r'_env = "([A-Z_]+)"', text), "secret")

    if text.startswith("orchestrator = ") and "[pools" not in text:
        # How a file begins; keys of the whole file stand before its tables.
        text += _POOL + _ENGINE
    if "[pools" in text:
        path.write_text(text if "[[pools]]" in text else _POOL + text, encoding="utf-8")
        assert load_pool_manager(path, secrets).pools
    else:
        path.write_text(text, encoding="utf-8")
        assert load_orchestrator(path, secrets)


def test_the_four_hosts_of_the_manual_are_there() -> None:
    """GPUs with GGUF files, a vLLM that runs, Ollama, a llama-server to launch."""
    manual = (ROOT / "docs" / "pool-managerd.md").read_text(encoding="utf-8")

    found = "".join(match[1] for match in _BLOCK.finditer(manual))

    for words in ("tensor_split", 'flavor = "vllm"', 'kind = "ollama"', "llama-server"):
        assert words in found
