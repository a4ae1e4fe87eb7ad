"""Tables of engines that are launched: what must stand together, and in which words. ORCH-3207."""

from typing import Any

import pytest
from pydantic import ValidationError

from pool_managerd.config.engines import OllamaTable
from pool_managerd.config.schema import PoolTable

HERE = "http://127.0.0.1:1"


def pool(kind: str, command: str = "", more: dict[str, Any] | None = None, **engine: Any) -> None:
    """Validates a pool whose command is these words; without them it is not launched."""
    table = {"kind": kind, "model_id": "m", **engine}
    if command:
        table["launch"] = {"command": command.split()}
    PoolTable.model_validate({"pool_id": "p", "engine": table, **(more or {})})


def refusal(kind: str, command: str = "", more: dict[str, Any] | None = None, **engine: Any) -> str:
    """What is said of a pool that cannot be."""
    with pytest.raises(ValidationError) as caught:
        pool(kind, command, more, **engine)
    return str(caught.value.errors()[0]["msg"])


def test_every_placeholder_has_a_setting_behind_it() -> None:
    """An empty argument would mean something else to every server."""
    said = {
        name: refusal(kind, f"serve {{{name}}}", **engine)
        for name, kind, engine in (
            ("ctx_total", "llama_server", {}),
            ("ctx_max", "openai", {"flavor": "vllm"}),
            ("gpu_layers", "openai", {"flavor": "vllm"}),
            ("vram_claim_ratio", "openai", {"flavor": "vllm"}),
            ("tensor_split", "llama_server", {}),
        )
    }

    for name, words in (
        ("ctx_total", "set engine.ctx_per_slot"),
        ("ctx_max", "set engine.ctx_max"),
        ("gpu_layers", 'kind = "llama_server"'),
        ("vram_claim_ratio", "set the pool's vram_claim_ratio"),
        ("tensor_split", "set the pool's tensor_split"),
    ):
        assert f"uses {{{name}}}" in said[name]
        assert words in said[name]
    ratio = {"vram_claim_ratio": 0.5}
    pool("openai", "serve {ctx_max} {vram_claim_ratio}", ratio, flavor="vllm", ctx_max=8)


def test_a_reference_needs_a_command_that_takes_it() -> None:
    """Nobody else would load what it names; a malformed one is told at once."""
    takes = "serve {model_path}"

    assert "whose command has {model_path}" in refusal("llama_server", "serve", model_ref="a.gguf")
    assert "whose command has {model_path}" in refusal(
        "llama_server", base_url=HERE, model_ref="a.gguf"
    )
    assert "not both" in refusal("llama_server", takes, model_ref="a.gguf", model_path="b.gguf")
    assert "set model_ref, or model_path" in refusal("llama_server", takes)
    assert "cannot be fetched from s3:" in refusal("llama_server", takes, model_ref="s3:a/b")
    pool("llama_server", takes, model_ref="hf:org/repo/a.gguf")


def test_what_a_running_server_was_told_cannot_be_set_here() -> None:
    """It would be believed by nobody."""
    said = refusal("llama_server", base_url=HERE, ctx_per_slot=512)

    assert "ctx_per_slot is for a server that is launched" in said


def test_a_triton_server_needs_an_address_or_a_launch_table() -> None:
    """As any engine that is attached to."""
    sizes = {"model": "m", "slots": 1, "ctx_max": 9}

    assert "address is needed, or a launch table" in refusal("triton", **sizes)
    pool("triton", "tritonserver --grpc-port={port}", **sizes)
    pool("triton", "tritonserver", address="127.0.0.1:{port}", **sizes)


def test_a_launched_servers_port_is_ours_to_choose() -> None:
    """A fixed one would be waited for at another."""
    here = {"base_url": "http://127.0.0.1:8080"}

    assert "must hold {port}" in refusal("llama_server", "serve --port 8080", **here)
    assert "must hold {port}" in refusal(
        "triton", "serve", address="127.0.0.1:8001", model="m", slots=1, ctx_max=9
    )
    pool("llama_server", "serve {port}", base_url="http://127.0.0.1:{port}/prefix")


def test_ollama_is_where_it_usually_is_unless_it_is_launched() -> None:
    """Its own port, or one of ours."""

    def where(**engine: Any) -> str:
        table = {"kind": "ollama", "model_id": "m", **engine}
        made = PoolTable.model_validate({"pool_id": "p", "engine": table}).engine
        assert isinstance(made, OllamaTable)
        return made.base_url

    launched = {"launch": {"command": ["ollama", "serve"]}}
    assert where() == "http://127.0.0.1:11434"
    assert where(**launched) == ""
    assert where(**launched, base_url="http://127.0.0.1:{port}") == "http://127.0.0.1:{port}"


def test_files_besides_the_model_have_to_be_in_the_command() -> None:
    """Their memory would be counted for nothing, or not counted."""
    draft = {"draft_model_path": "d.gguf"}

    assert "has no {draft_model_path}" in refusal("llama_server", "serve {port}", **draft)
    assert "set engine.mmproj_path" in refusal("llama_server", "serve {mmproj_path}")
    assert "is for a server that is launched" in refusal("llama_server", base_url=HERE, **draft)
    assert 'for flavor = "llama_cpp" with a launch' in refusal(
        "openai", "serve {draft_model_path}", flavor="vllm", **draft
    )
    assert "goes without draft_model_path" in refusal(
        "llama_server", "serve {draft_model_path}", deterministic=True, **draft
    )
    assert "goes without draft_model_path" in refusal(
        "embedded", model_path="m.gguf", deterministic=True, **draft
    )
    pool("openai", "serve {draft_model_path}", flavor="llama_cpp", **draft)


def test_a_llama_cpp_behind_openais_api_has_the_same_placeholders() -> None:
    """Its context is `ctx_max`."""
    settings = {"flavor": "llama_cpp", "ctx_max": 512, "slots": 2, "kv_type": "q8_0"}

    pool("openai", "serve {ctx_total} {ctx_per_slot} {gpu_layers} {kv_type}", **settings)
    assert "or ctx_max of the flavor llama_cpp" in refusal(
        "openai", "serve {ctx_total}", flavor="llama_cpp"
    )
    assert "gpu_layers is for flavor" in refusal(
        "openai", base_url=HERE, flavor="llama_cpp", gpu_layers=3
    )
