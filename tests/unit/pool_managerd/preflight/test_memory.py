"""Whether a pool fits into its host's memory, before its engine starts. ORCH-3002, ORCH-3003."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.fit import HOST
from pool_managerd.core.gguf_fit import GPU_CONTEXT_BYTES, PROCESS_BYTES
from pool_managerd.devices.host_memory import HostMemory
from pool_managerd.engines.port import PreloadError
from pool_managerd.models.tiny_gguf import write_tiny_model
from pool_managerd.preflight.host import LOOK_INTERVAL_MS
from tests.integration.pool_managerd.gguf_models import WIDE, write_model
from tests.unit.pool_managerd.preflight.box import (
    GIB,
    SMALL,
    WAIT_MS,
    Box,
    gpu,
    served,
    table,
    vllm,
)


async def test_a_pool_that_fits_is_claimed_at_once(model: Path) -> None:
    """Host and device each get their part of the estimate."""
    box = Box()

    await box.preflight().memory(table(model))

    assert box.looks == 0
    assert GPU_CONTEXT_BYTES < box.ledger.claimed("GPU-a") < GPU_CONTEXT_BYTES + SMALL
    assert PROCESS_BYTES < box.ledger.claimed(HOST) < PROCESS_BYTES + SMALL


async def test_a_pool_that_does_not_fit_says_why_for_every_memory(model: Path) -> None:
    """ORCH-3003: after the wait, one sentence each, with numbers and a remedy."""
    box = Box(devices=(gpu("a", 100 << 20),), host=HostMemory(64 * GIB, 50 << 20))

    with pytest.raises(PreloadError) as caught:
        await box.preflight().memory(table(model))

    device, host = caught.value.shortfalls
    assert device.startswith("GPU-a (RTX 3060) lacks 35")
    assert "and 100.0 MiB of 12.0 GiB are available" in device
    assert host.startswith("the host lacks 10")
    assert all(
        sentence.endswith("or a model file of fewer bits or parameters")
        for sentence in (device, host)
    )
    assert WAIT_MS <= box.elapsed_ms <= WAIT_MS + LOOK_INTERVAL_MS
    assert box.ledger.claimed("GPU-a") == 0


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"slots": 1}, "slots = 1 would fit instead of 2"),
        ({"ctx_per_slot": 256}, "; ctx_per_slot = 256 would fit"),
        ({"slots": 1, "ctx_per_slot": 256}, "slots = 1 and ctx_per_slot = 256 would fit"),
        ({"kv_type": "q8_0"}, 'kv_type = "q8_0" would fit'),
        ({"gpu_layers": 3}, "gpu_layers = 3 would fit"),
    ],
)
async def test_the_remedy_is_the_smallest_change_that_works(
    tmp_path: Path, change: dict[str, object], advice: str
) -> None:
    """A device that has room for exactly the changed pool leads to that change."""
    base = {"slots": 2, "ctx_per_slot": 512 if "ctx_per_slot" in change else 256}
    if "kv_type" in change:
        # One slot of the least context: only fewer bits are left.
        base["slots"] = 1
    pool = table(write_model(tmp_path / "m.gguf", "llama", WIDE))
    pool = pool.model_copy(update={"engine": pool.engine.model_copy(update=base)})
    changed = pool.model_copy(update={"engine": pool.engine.model_copy(update=change)})
    box = Box()
    await box.preflight().memory(changed)
    box.devices = (gpu("a", box.ledger.claimed("GPU-a")),)
    box.ledger.release("p")

    with pytest.raises(PreloadError, match="would fit") as caught:
        await box.preflight().memory(pool)

    assert advice in str(caught.value)


async def test_memory_that_comes_back_late_is_waited_for(model: Path) -> None:
    """A driver gives back an ended engine's memory a moment later."""

    def give_back(box: Box, number: int) -> None:
        assert preflight.doing("p") == "waiting for memory of GPU-a (RTX 3060)"
        if number == 3:
            box.devices = (gpu("a", 12 * GIB),)

    box = Box(devices=(gpu("a", 0),), on_look=give_back)
    preflight = box.preflight()

    await preflight.memory(table(model))

    assert box.looks == 3
    assert preflight.doing("p") == ""


async def test_a_pool_waits_while_another_one_loads(model: Path) -> None:
    """Beyond the bound: how much the other will take is settled only once it has loaded."""

    def loads(box: Box, number: int) -> None:
        if number == 10:
            box.ledger.settle("other", {"GPU-a": GIB})

    box = Box(on_look=loads)
    box.ledger.claim("other", {"GPU-a": 12 * GIB})

    await box.preflight().memory(table(model))

    assert box.looks == 10
    assert box.elapsed_ms > WAIT_MS


async def test_what_other_pools_claim_is_not_free(model: Path) -> None:
    """LO-204: the driver's word alone would let two pools onto one device."""
    box = Box()
    box.ledger.claim("other", {"GPU-a": 12 * GIB - (100 << 20)})
    box.ledger.settle("other", {})

    with pytest.raises(PreloadError, match=r"other pools of this host claim 11\.9 GiB"):
        await box.preflight().memory(table(model))


@pytest.mark.parametrize(
    ("free", "total", "claimed", "passing"),
    [
        # Other programs have it: it may come back in an hour.
        (0, 12 * GIB, 0, True),
        (0, 12 * GIB, GIB, True),
        # Too small, or promised to another pool: nothing changes by itself.
        (100 << 20, 100 << 20, 0, False),
        (12 * GIB, 12 * GIB, 12 * GIB - (100 << 20), False),
    ],
)
async def test_memory_that_others_hold_is_no_reason_to_give_up(
    model: Path, free: int, total: int, claimed: int, *, passing: bool
) -> None:
    """Such a pool goes on trying, as nothing was started; one that can never fit gives up."""
    box = Box(devices=(gpu("a", free, total=total),))
    box.ledger.claim("other", {"GPU-a": claimed})
    box.ledger.settle("other", {})

    with pytest.raises(PreloadError) as caught:
        await box.preflight().memory(table(model))

    assert caught.value.passing == passing


async def test_an_integrated_device_uses_the_memory_of_the_host(model: Path) -> None:
    """What both need is compared with what the host has."""
    shared = replace(gpu("a", 32 * GIB, total=64 * GIB), memory_is_host_memory=True)
    box = Box(devices=(shared,))

    await box.preflight().memory(table(model))

    assert box.ledger.claimed("GPU-a") == 0
    assert box.ledger.claimed(HOST) > PROCESS_BYTES + GPU_CONTEXT_BYTES


async def test_the_processor_uses_the_memory_of_the_host(model: Path) -> None:
    """Without layers on a GPU there is no other claim."""
    cpu = Device("cpu", DeviceKind.CPU, memory_total_bytes=64 * GIB, memory_free_bytes=GIB)
    box = Box(devices=(cpu,), host=HostMemory(64 * GIB, GIB))

    await box.preflight().memory(table(model, gpu_layers=0))

    assert box.ledger.claimed("cpu") == 0
    assert box.ledger.claimed(HOST) > PROCESS_BYTES


async def test_an_operator_may_state_what_an_engine_takes(model: Path) -> None:
    """In place of the estimate, over the devices as the split says."""
    box = Box(devices=(gpu("a", 6 * GIB), gpu("b", 6 * GIB)))
    split = {"devices": ["GPU-a", "GPU-b"], "tensor_split": [3, 1]}

    await box.preflight().memory(table(model, "p", vram_claim_bytes=4 * GIB, **split))
    await box.preflight().memory(table(model, "q", vram_claim_ratio=0.25))

    assert [box.ledger.claimed(name) for name in ("GPU-a", "GPU-b", HOST)] == [6 * GIB, 4 * GIB, 0]
    box.ledger.release("p")
    box.ledger.release("q")
    with pytest.raises(PreloadError, match=r"lower the pool's vram_claim.*as the configuration"):
        await box.preflight().memory(table(model, vram_claim_ratio=0.9))


@pytest.mark.parametrize("check", ["warn", "off"])
async def test_the_check_can_be_softened(model: Path, check: str) -> None:
    """An estimate can be wrong: the operator decides."""
    box = Box(devices=(gpu("a", 0),))

    await box.preflight().memory(table(model, memory_check=check))

    assert (box.ledger.claimed("GPU-a") > 0) == (check == "warn")


async def test_a_review_waits_for_nothing_and_adds_pools_up(model: Path) -> None:
    """Two pools that fit one by one need not fit together."""
    box = Box(devices=(gpu("a", 800 << 20, total=800 << 20),))
    preflight = box.preflight()

    first = await preflight.review(table(model, "p"))
    second = await preflight.review(table(model, "q"))

    assert first is not None
    assert second is not None
    assert not first.shortfalls
    assert first.needs["GPU-a"] == box.ledger.claimed("GPU-a")
    (sentence,) = second.shortfalls
    assert "other pools of this host claim 459" in sentence
    assert box.looks == 0
    assert await preflight.review(table(model, memory_check="off")) is None


async def test_a_file_that_nobody_understands_is_left_to_the_engine(tmp_path: Path) -> None:
    """No estimate, no refusal: the engine says what is wrong with it."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 99, 0, 0))
    box = Box(devices=(gpu("a", 0),))

    await box.preflight().memory(table(path))

    assert box.ledger.claimed("GPU-a") == 0


async def test_what_no_free_memory_would_cure_is_not_waited_for(folder: Path) -> None:
    """Heads that do not divide, and a share that does not hold one sequence."""
    box = Box(devices=tuple(gpu(name, 12 * GIB) for name in "abc"))
    table = vllm(folder, vram_claim_ratio=0.1)

    with pytest.raises(PreloadError) as caught:
        await box.preflight().memory(table)

    heads, *shares = caught.value.shortfalls
    assert "3 devices do not divide the 4 attention heads" in heads
    assert len(shares) == 3
    assert "a share of 0.10 is 1.2 GiB" in shares[0]
    assert box.looks == 0
    await box.preflight().memory(table.model_copy(update={"memory_check": "warn"}))
    grows = {"kind": "openai", "flavor": "transformers", "ctx_max": 4096}
    await box.preflight().memory(served(folder, **grows))


async def test_a_claim_is_a_number_that_can_be_told(tmp_path: Path) -> None:
    """Dimensions of a damaged file multiply to more than 64 bits, and `warn` claims it all."""
    path = tmp_path / "odd.gguf"
    write_tiny_model(path)
    content = path.read_bytes()
    for key in (b"llama.embedding_length", b"llama.attention.head_count_kv"):
        at = content.index(key) + len(key) + 4
        content = content[:at] + struct.pack("<I", 0xFFFFFFFF) + content[at + 4 :]
    path.write_bytes(content)
    box = Box()

    await box.preflight().memory(table(path, memory_check="warn"))

    claimed = [entry.estimated for entry in box.ledger.entries("p").values()]
    assert max(claimed) > 16 << 40
    assert max(claimed) < 1 << 63
