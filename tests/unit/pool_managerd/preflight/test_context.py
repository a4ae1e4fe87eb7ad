"""A context that a model does not have is told of, with both numbers and what to change."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pool_managerd.config.schema import PoolTable
from pool_managerd.engines.gguf_kv import trained_context
from pool_managerd.models.tiny_gguf import TinyShape, write_tiny_model
from pool_managerd.preflight.context import asked_context, longer_than_trained, served_less
from tests.unit.pool_managerd.preflight.box import Box, info

TRAINED = 512


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a short context."""
    path = tmp_path_factory.mktemp("models") / "short.gguf"
    write_tiny_model(path, TinyShape(context=TRAINED))
    return path


def embedded(model: Path, ctx_tokens: int) -> PoolTable:
    """A pool of the embedded engine that asks for so much."""
    engine = {"kind": "embedded", "model_path": str(model), "model_id": "m"}
    return PoolTable.model_validate(
        {"pool_id": "p", "engine": engine | {"ctx_per_slot": ctx_tokens}}
    )


def launched(kind: str, model: Path, key: str, ctx_tokens: int) -> PoolTable:
    """A pool whose llama.cpp server is launched."""
    engine: dict[str, object] = {"kind": kind, "model_path": str(model), "model_id": "m"}
    engine |= {key: ctx_tokens, "slots": 1, "launch": {"command": ["llama-server"]}}
    if kind == "openai":
        engine["flavor"] = "llama_cpp"
    return PoolTable.model_validate({"pool_id": "p", "engine": engine})


def test_the_file_says_what_its_model_was_trained_with(model: Path, tmp_path: Path) -> None:
    """A file that is none, or is not there, says nothing."""
    (tmp_path / "no.gguf").write_bytes(b"GGUF")

    assert trained_context(model) == TRAINED
    assert trained_context(tmp_path / "no.gguf") is None
    assert trained_context(tmp_path / "absent.gguf") is None


@pytest.mark.parametrize("asked", [TRAINED - 1, TRAINED, TRAINED + 1, 4 * TRAINED])
def test_more_than_the_model_was_trained_with_is_told_before_the_start(
    model: Path, asked: int
) -> None:
    """Both numbers, and the setting to change; nothing where the model has as much."""
    tables = {
        "ctx_per_slot": (
            embedded(model, asked),
            launched("llama_server", model, "ctx_per_slot", asked),
        ),
        "ctx_max": (launched("openai", model, "ctx_max", asked),),
    }
    for key, pools in tables.items():
        for table in pools:
            told = longer_than_trained(table)

            assert bool(told) == (asked > TRAINED)
            if told:
                assert f"{key} = {asked}" in told
                assert f"set {key} = {TRAINED}" in told


def test_a_pool_whose_context_is_not_ours_to_say_is_left_alone(model: Path) -> None:
    """A server that runs already, one without a stated context, and other engines."""
    attached = {"kind": "llama_server", "base_url": "http://127.0.0.1:9", "model_id": "m"}
    tables = (
        PoolTable.model_validate({"pool_id": "p", "engine": attached | {"model_path": str(model)}}),
        PoolTable.model_validate({"pool_id": "p", "engine": {"kind": "mock"}}),
        launched("llama_server", model, "slots", 1),
    )

    for table in tables:
        assert asked_context(table.engine)[1] == 0
        assert longer_than_trained(table) == served_less(table, 1) == ""


def test_what_an_engine_serves_less_is_told_with_the_cause(model: Path) -> None:
    """By the model where it is the model, else without a guess; more than asked is no matter."""
    table = embedded(model, 4 * TRAINED)
    by_model, otherwise = served_less(table, TRAINED), served_less(embedded(model, TRAINED), 256)

    assert f"serves a context of {TRAINED} tokens, not ctx_per_slot = {4 * TRAINED}" in by_model
    assert f"its model was trained with {TRAINED}; set ctx_per_slot = {TRAINED}" in by_model
    assert "its engine gives no more; set ctx_per_slot = 256" in otherwise
    assert served_less(table, 4 * TRAINED) == served_less(table, 8 * TRAINED) == ""


async def test_a_start_says_that_the_context_was_cut(model: Path) -> None:
    """Once for each start, in the log; a start that gets what it asked for says nothing."""
    preflight, table = Box().preflight(), embedded(model, 4 * TRAINED)
    with capture_logs() as lines:
        await preflight.loaded(table, info())
        await preflight.loaded(embedded(model, info().ctx_max), info())

    cut = [line for line in lines if line["event"] == "context_cut"]
    served = info().ctx_max
    assert [(line["asked_tokens"], line["served_tokens"]) for line in cut] == [
        (4 * TRAINED, served)
    ]
    assert cut[0]["log_level"] == "warning"
