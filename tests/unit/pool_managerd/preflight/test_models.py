"""The model that an engine is to load: found, whole, and with its digest. ORCH-3002."""

import threading
from pathlib import Path

import pytest

from pool_managerd.config.llama import LlamaServerTable
from pool_managerd.config.schema import PoolTable
from pool_managerd.engines.gguf_file import gguf_digest
from pool_managerd.engines.port import PreloadError
from pool_managerd.preflight.port import NoPreflight
from tests.unit.pool_managerd.preflight.box import POOL, Box, info, served, table


async def test_the_model_is_found_and_its_digest_computed(model: Path) -> None:
    """The engine is started with an absolute path and a digest that was verified. ORCH-3037."""
    digest = gguf_digest(model, threading.Event())
    preflight = Box().preflight()

    for ref in ("", f"file:{model}", f"{model}#{digest.replace(':', '=')}"):
        prepared = await preflight.model(table(model), ref)

        assert prepared.model_ref == ""
        engine = prepared.table.engine
        assert engine.kind == "embedded"
        assert (engine.model_path, engine.model_digest) == (str(model), digest)


async def test_a_wrong_digest_fails_the_preload(model: Path) -> None:
    """Stated in the table, or in the reference. ORCH-3037."""
    wrong = "0" * 64
    pool = table(model)
    stated = pool.engine.model_copy(update={"model_digest": f"sha256:{wrong}"})

    with pytest.raises(PreloadError, match=f"has the digest sha256:.* not sha256:{wrong}"):
        await Box().preflight().model(pool.model_copy(update={"engine": stated}), "")
    with pytest.raises(PreloadError, match=f"not sha256:{wrong}"):
        await Box().preflight().model(pool, f"{model}#sha256={wrong}")


async def test_a_digest_is_computed_again_when_the_file_changes(tmp_path: Path) -> None:
    """A restart reads no file twice, and never trusts a name alone."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF one")
    preflight = Box().preflight()
    first = await preflight.model(table(path), "")
    path.write_bytes(b"GGUF two and more")

    second = await preflight.model(table(path), "")

    assert first.table.engine != second.table.engine


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("absent.gguf", "model file .*absent.gguf does not exist"),
        ("s3:b/k", "cannot be fetched from s3: yet"),
        ("hf:o/r/f.gguf", "hf:o/r/f.gguf is not on this host, and .* outbound.enabled = true"),
    ],
)
async def test_a_model_that_is_not_here_fails_the_preload(model: Path, ref: str, said: str) -> None:
    """ORCH-3091: absent and not allowed names the setting."""
    with pytest.raises(PreloadError, match=said):
        await Box().preflight().model(table(model), ref)


async def test_engines_without_a_model_file_of_ours_get_the_reference() -> None:
    """They refuse it or load it; a simulated host judges nothing at all."""
    pool = PoolTable.model_validate(POOL)

    for preflight in (Box().preflight(), NoPreflight()):
        assert (await preflight.model(pool, "ref")).model_ref == "ref"
        await preflight.memory(pool)
        await preflight.loaded(pool, info())
        preflight.gone("p")
        assert preflight.doing("p") == ""


async def test_a_launched_engine_gets_its_model_as_the_embedded_one_does(model: Path) -> None:
    """A reference becomes a file with a digest; a reload another one. ORCH-3090."""
    preflight = Box().preflight()
    by_ref = served(model, model_path="", model_ref=f"file:{model}")

    started = await preflight.model(by_ref, "")
    reloaded = await preflight.model(served(Path("/absent/b.gguf")), str(model))

    for prepared in (started, reloaded):
        engine = prepared.table.engine
        assert isinstance(engine, LlamaServerTable)
        assert (engine.model_ref, engine.model_path) == ("", str(model))
        assert engine.model_digest == gguf_digest(model, threading.Event())
        assert prepared.model_ref == ""
    with pytest.raises(PreloadError, match=r"/absent/b\.gguf does not exist"):
        await preflight.model(served(Path("/absent/b.gguf")), "")
    with pytest.raises(PreloadError, match=r"has the digest sha256:.*, not sha256:00"):
        await preflight.model(served(model, model_digest="sha256:00"), "")


async def test_a_folder_has_no_digest_and_a_server_of_its_own_model_gets_the_reference(
    folder: Path,
) -> None:
    """What was stated of the former folder is not true of the next; others choose alone."""
    preflight = Box().preflight()
    kind = {"kind": "openai", "flavor": "vllm", "model_digest": "mine"}
    bare = served(folder, **kind, launch={"command": ["serve"]})

    first = await preflight.model(served(folder, **kind), "")
    other = await preflight.model(served(folder, **kind), str(folder))
    passed_on = await preflight.model(bare, "file:x")

    digests = [getattr(prepared.table.engine, "model_digest", "") for prepared in (first, other)]
    assert digests == ["mine", ""]
    assert passed_on.model_ref == "file:x"
    with pytest.raises(PreloadError, match="model /absent does not exist"):
        await preflight.model(served(Path("/absent"), **kind), "")


def cut_off(model: Path, path: Path, share: float) -> Path:
    """The beginning of a model."""
    content = model.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("share", [0.05, 0.5])
async def test_a_model_that_was_not_copied_to_its_end_is_refused(
    tmp_path: Path, model: Path, share: float
) -> None:
    """Before an engine tries it, and in `check`: within its metadata, and within its weights."""
    path = cut_off(model, tmp_path / "cut.gguf", share)
    preflight = Box().preflight()

    with pytest.raises(PreloadError, match=r"cut\.gguf ends .*: copy or fetch it again"):
        await preflight.memory(table(path))
    review = await preflight.review(table(path))

    assert review is not None
    assert len(review.shortfalls) == 1
