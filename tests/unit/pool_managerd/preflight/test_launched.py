"""What is expected of the memory of servers that the host launches. ORCH-3003, LO-205."""

from pathlib import Path

import pytest

from pool_managerd.core.fit import HOST
from pool_managerd.engines.port import PreloadError
from pool_managerd.models.tiny_gguf import write_tiny_model
from tests.unit.pool_managerd.preflight.box import GIB, SMALL, Box, gpu, served, table, vllm


async def test_a_launched_llama_server_is_judged_as_the_embedded_engine_is(model: Path) -> None:
    """By its own settings; what differs is how many prompt tokens it computes at a time."""
    box = Box()
    preflight = box.preflight()

    mine = await preflight.review(served(model, ctx_per_slot=1024))
    embedded = await preflight.review(table(model, "q"))

    assert mine is not None
    assert embedded is not None
    assert mine.needs.keys() == embedded.needs.keys() == {"GPU-a", HOST}
    assert 0 <= mine.needs["GPU-a"] - embedded.needs["GPU-a"] < SMALL
    on_host = await preflight.review(served(model, ctx_per_slot=1024, gpu_layers=0))
    assert on_host is not None
    assert on_host.needs.keys() == {HOST}


async def test_a_launched_llama_server_that_does_not_fit_is_refused(model: Path) -> None:
    """With the same sentence, and a remedy in the same settings."""
    box = Box(devices=(gpu("a", 560 << 20),))

    with pytest.raises(PreloadError, match=r"GPU-a \(RTX 3060\) lacks .* would fit"):
        await box.preflight().memory(served(model, ctx_per_slot=65_536, slots=8))


async def test_what_nobody_tells_is_not_judged(model: Path) -> None:
    """A launched server of unknown context; a server that runs has what it takes."""
    box = Box(devices=(gpu("a", 0),))
    preflight = box.preflight()
    running = {"launch": None, "base_url": "http://127.0.0.1:1", "model_path": ""}
    claim = {"vram_claim_bytes": GIB}

    unknown = await preflight.review(served(model))
    silent = await preflight.review(served(model, **running))
    stated = await preflight.review(served(model, claim, **running))

    assert unknown is not None
    assert (unknown.needs, unknown.shortfalls) == ({}, ())
    assert "vram_claim_bytes would say it" in unknown.notes[0]
    assert silent is None
    assert stated is not None
    assert (stated.needs, stated.shortfalls) == ({"GPU-a": GIB}, ())
    box.ledger.release("p")
    await preflight.memory(served(model))
    assert box.ledger.claimed("GPU-a") == 0


async def test_a_launched_vllm_takes_its_share_of_each_device(folder: Path) -> None:
    """LO-205: the whole share, whatever the model; the free memory has to hold it."""
    box = Box(devices=(gpu("a", 12 * GIB), gpu("b", 7 * GIB)))
    preflight = box.preflight()

    fits = await preflight.review(vllm(folder, vram_claim_ratio=0.5))
    short = await preflight.review(vllm(folder, vram_claim_ratio=0.75))

    assert fits is not None
    assert short is not None
    assert (fits.needs, fits.shortfalls) == ({"GPU-a": 6 * GIB, "GPU-b": 6 * GIB}, ())
    (sentence,) = short.shortfalls
    assert sentence.startswith("GPU-b (RTX 3060) lacks 2.0 GiB of memory: 9.0 GiB are needed")
    assert "a smaller vram_claim_ratio" in sentence


def size_of(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


async def test_a_llama_cpp_behind_openais_api_is_judged_by_its_file_too(model: Path) -> None:
    """As the same server with its own API: what it is told is what it is judged by."""
    command = {"command": ["serve", "{model_path}", "-c", "{ctx_total}"]}
    own = served(model, ctx_per_slot=1_024, launch=command)
    behind = served(model, kind="openai", flavor="llama_cpp", ctx_max=1_024, launch=command)

    reviews = [await Box().preflight().review(pool) for pool in (own, behind)]

    assert reviews[0] is not None
    assert reviews[1] is not None
    assert reviews[0].needs == reviews[1].needs
    assert own.launch_values()["ctx_total"] == behind.launch_values()["ctx_total"] == "2048"
    tight = Box(devices=(gpu("a", 500 << 20),))
    long = served(model, kind="openai", flavor="llama_cpp", ctx_max=65_536, launch=command)
    refused = await tight.preflight().review(long)
    assert refused is not None
    assert "ctx_max = " in refused.shortfalls[0]


async def test_a_projector_and_a_draft_model_count(model: Path, tmp_path: Path) -> None:
    """The file of the one, weights and context of the other; on the first device."""
    projector = tmp_path / "mmproj.gguf"
    write_tiny_model(projector)
    files = {"mmproj_path": str(projector), "draft_model_path": str(model)}
    pools = [
        served(
            model, ctx_per_slot=1_024, launch={"command": ["serve", "{model_path}", *words]}, **of
        )
        for words, of in (
            (["{mmproj_path}"], {"mmproj_path": str(projector)}),
            (["{mmproj_path}", "{draft_model_path}"], files),
        )
    ]
    more = pools[1]

    reviews = [
        await Box().preflight().review(pool) for pool in (served(model, ctx_per_slot=1_024), *pools)
    ]

    plain, projected, drafted = (review.needs["GPU-a"] for review in reviews if review)
    assert projected - plain == size_of(projector)
    # Keys and values of 1,024 tokens for each of two slots: 2 layers, 32 wide, two bytes.
    assert drafted - projected > 2 * 1_024 * 2 * 2 * 32 * 2
    assert more.launch_values()["draft_model_path"] == str(model)
    assert (await Box().preflight().model(more, "")).table.engine.model_id == "m"
    projector.unlink()
    with pytest.raises(PreloadError, match=r"mmproj\.gguf does not exist"):
        await Box().preflight().model(more, "")


async def test_what_a_vllm_without_a_stated_share_takes_is_a_lower_bound(folder: Path) -> None:
    """The note says what would be better."""
    review = await Box().preflight().review(vllm(folder))

    assert review is not None
    assert review.needs["GPU-a"] < 3 * GIB
    assert "vram_claim_ratio would say it" in review.notes[0]
