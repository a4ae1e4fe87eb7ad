"""The table of a Triton engine, from the file to the adapter. ORCH-3057."""

from pathlib import Path

import pytest

from pool_managerd.config.loading import load_config
from pool_managerd.config.problems import ConfigError
from pool_managerd.config.schema import Config
from pool_managerd.config.text import to_toml
from pool_managerd.factory import make_engine
from tests.conformance.triton_replay import replay_server

TABLE = """
devices = "cpu"
[[pools]]
pool_id = "p0"
[pools.engine]
kind = "triton"
address = "127.0.0.1:8001"
model = "m"
model_id = "tiny"
slots = 3
ctx_max = 99
"""


def loaded(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> Config:
    """Reads a configuration file."""
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, env or {})


async def test_what_the_file_says_reaches_the_server(tmp_path: Path) -> None:
    """Address, names of tensors, key, slots and context."""
    text = TABLE + 'api_key_env = "KEY"\napi_key_name = "x-key"\ntensors = { seed = "dice" }\n'
    async with replay_server() as replay:
        replay.api_key = "hunter2"
        replay.inputs = [
            ("dice" if name == "seed" else name, *rest) for name, *rest in replay.inputs
        ]
        text = text.replace("127.0.0.1:8001", replay.address)
        config = loaded(tmp_path, text, {"KEY": "hunter2"})
        engine = make_engine(config.pools[0], "")

        info = await engine.start()
        await engine.stop()

    assert (info.engine, info.model_id, info.slots_total, info.ctx_max) == ("triton", "tiny", 3, 99)
    assert "hunter2" not in to_toml(config) + repr(config)
    assert loaded(tmp_path, to_toml(config), {"KEY": "hunter2"}) == config


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("deterministic = true", "deterministic = true needs slots = 1"),
        ('api_key_env = "KEY"', "api_key_env needs api_key_name"),
        ('metrics_url = "http://x/metrics"', "metrics_url needs busy_metric with profile plain"),
        ('tensors = { sead = "x" }', "tensors.sead: no such field"),
        ('profile = "onnx"', "Input should be 'plain', 'vllm' or 'tensorrt_llm'"),
        ('adress = "x"', 'unknown key; did you mean "address"?'),
    ],
)
def test_what_cannot_work_is_named(tmp_path: Path, more: str, problem: str) -> None:
    """With the key and what to change."""
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, TABLE + more + "\n")

    (found,) = caught.value.problems
    assert found.startswith("pools[0].engine")
    assert found.endswith(problem)


def test_a_cancel_settles_before_it_is_given_up(tmp_path: Path) -> None:
    """Otherwise every cancel would end the engine; the metrics tell without a wait."""
    limits = "supervision.cancel_confirm_ms = 200\n"

    with pytest.raises(ConfigError, match=r"p0\.engine\.cancel_settle_ms: 200 must be below"):
        loaded(tmp_path, limits + TABLE)

    told = 'profile = "vllm"\nmetrics_url = "http://127.0.0.1:8002/metrics"\n'
    assert loaded(tmp_path, limits + TABLE + told).pools[0].pool_id == "p0"
