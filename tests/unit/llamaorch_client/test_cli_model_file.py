"""What a file may state of a model, and how what it may not is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import catalog_service_pb2, job_pb2
from llamaorch_client import wire_catalog
from llamaorch_client.cli import model_file
from llamaorch_client.cli.failure import UsageError
from orchestrator_core.wire.catalog import STATED

DOCUMENT = Path(__file__).parents[3] / "docs" / "catalog.md"
GOOD: dict[str, Any] = {
    "model_id": "m",
    "aliases": ["a"],
    "engines": ["vllm"],
    "ctx_max": 1,
    "bytes_per_token": 3,
    "labels": {"a": "b"},
    "requirements": {"min_vram_bytes": 1 << 40, "device_mask": ["GPU-1"]},
    "dimensions": {"layers": 2, "kv_heads": 1, "key_length": 8, "value_length": 0},
}
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def _read(path: Path, stated: object) -> dict[str, Any]:
    path.write_text(json.dumps(stated))
    return model_file.read(str(path))


def test_the_keys_are_all_that_an_operator_states() -> None:
    """A field that the wire gets is missed here."""
    dimensions = catalog_service_pb2.ModelDimensions.DESCRIPTOR.fields_by_name
    requirements = job_pb2.Requirements.DESCRIPTOR.fields_by_name

    assert set(model_file.KEYS) == STATED
    assert set(model_file.DIMENSIONS) == set(dimensions)
    assert set(model_file.REQUIREMENTS) == set(requirements)


@given(
    key=st.sampled_from([*model_file.KEYS, "dimensions", "requirements"]),
    inner=st.sampled_from([*model_file.DIMENSIONS, *model_file.REQUIREMENTS, ""]),
    value=_values,
)
def test_a_value_goes_to_the_wire_or_its_key_is_named(key: str, inner: str, value: object) -> None:
    """Whatever stands there: nothing fails on its way to the wire, in words of the wire."""
    stated = {"model_id": "m", key: {inner: value} if inner else value}

    found = list(model_file.problems(stated))

    if found:
        assert all(f"`{key}" in problem for problem in found)
    else:
        wire_catalog.model_to_wire(model_file.model(stated))


def test_what_is_stated_reaches_the_wire(tmp_path: Path) -> None:
    """Every kind of value, from JSON; TOML says the same."""
    toml = tmp_path / "m.toml"
    toml.write_text('model_id = "m"\nctx_max = 1\nlabels = { a = "b" }\n')

    sent = wire_catalog.model_to_wire(model_file.model(_read(tmp_path / "m.json", GOOD)))

    assert (sent.model_id, list(sent.aliases), sent.ctx_max) == ("m", ["a"], 1)
    assert (sent.bytes_per_token, dict(sent.labels)) == (3.0, {"a": "b"})
    assert sent.requirements.min_vram_bytes == 1 << 40
    assert list(sent.requirements.device_mask) == ["GPU-1"]
    assert (sent.dimensions.layers, sent.dimensions.value_length) == (2, 0)
    assert model_file.read(str(toml)) == {"model_id": "m", "ctx_max": 1, "labels": {"a": "b"}}


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"ctxmax": 1}, "`ctxmax` is no key; `ctx_max` may be meant"),
        ({"state": "ACTIVE"}, "`state` is no key; allowed are model_id, aliases, "),
        ({"ctx_max": "8k"}, "`ctx_max` must be a whole number from 1 to 4294967295, is '8k'"),
        ({"ctx_max": True}, "`ctx_max` must be a whole number"),
        ({"aliases": "chat"}, "`aliases` must be a list of texts, is 'chat'"),
        ({"labels": {"a": 1}}, "`labels` must be a table of texts"),
        ({"dimensions": 3}, "`dimensions` must be a table with layers, kv_heads, "),
        ({"dimensions": {"depth": 3}}, "`dimensions.depth` is no key; "),
        ({"requirements": {"min_vram": 1}}, "`min_vram_bytes` may be meant"),
        ({"digest": ["x" * 99]}, "…"),
        ([], "holds no table of keys; it may have model_id, aliases"),
    ],
)
def test_what_cannot_be_says_which_key_and_what_is_allowed(
    tmp_path: Path, stated: object, told: str
) -> None:
    """One line a key, with the file's name before all."""
    file = tmp_path / "m.json"

    with pytest.raises(UsageError) as caught:
        _read(file, stated)

    assert str(caught.value).startswith(str(file))
    assert told in str(caught.value)


def test_all_mistakes_are_told_and_many_are_counted(tmp_path: Path) -> None:
    """Nobody corrects a file one run at a time, and no file fills the screen."""
    with pytest.raises(UsageError) as few:
        _read(tmp_path / "few.json", {"ctx_max": 0, "engine": "x"})
    with pytest.raises(UsageError) as many:
        _read(tmp_path / "many.json", {f"key{number}": 1 for number in range(100)})

    assert len(str(few.value).splitlines()) == 3
    assert len(str(many.value).splitlines()) == model_file.PROBLEMS_SHOWN + 2
    assert str(many.value).endswith("and 92 more")


def test_a_file_of_another_kind_says_so(tmp_path: Path) -> None:
    """JSON under another name, what is no text, and what is too long."""
    named = tmp_path / "m.txt"
    named.write_text("{}")
    binary = tmp_path / "m.toml"
    binary.write_bytes(b"\xff\xfe")
    long = tmp_path / "long.toml"
    long.write_bytes(b"#" * (model_file.FILE_BYTES_MAX + 1))
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)

    for path, told in (
        (named, "is no TOML (the name of a JSON file ends in .json)"),
        (binary, "is no TOML"),
        (long, "has more than 1048576 bytes"),
        (deep, "is no JSON"),
        (tmp_path / "none.toml", "No such file"),
    ):
        with pytest.raises(UsageError, match=re.escape(told)):
            model_file.read(str(path))


def test_the_example_of_the_document_is_a_model(tmp_path: Path) -> None:
    """And the document names every key."""
    text = DOCUMENT.read_text(encoding="utf-8")
    file = tmp_path / "m.toml"
    file.write_text(text.split("<!-- model file -->\n```\n", 1)[1].split("```", 1)[0])

    stated = model_file.read(str(file))
    sent = wire_catalog.model_to_wire(model_file.model(stated))

    assert (sent.model_id, sent.requirements.quantization) == ("qwen3-8b", "Q4_K_M")
    for key in (*model_file.KEYS, *model_file.DIMENSIONS, *model_file.REQUIREMENTS):
        assert re.search(rf"\b{key}\b", text), key
