"""What is judged before an engine starts, and what is noted after.

ORCH-3002, ORCH-3003, ORCH-3201.
"""

import json
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from pool_managerd.config import Config, PoolTable
from pool_managerd.config_llama import LlamaServerEngine
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.fit import HOST
from pool_managerd.core.gguf_fit import GPU_CONTEXT_BYTES, PROCESS_BYTES
from pool_managerd.core.ledger import Ledger
from pool_managerd.engines.gguf_file import gguf_digest
from pool_managerd.engines.port import EngineInfo, PreloadError
from pool_managerd.host_preflight import (
    LOOK_INTERVAL_MS,
    HostMemory,
    HostPreflight,
    PreflightDeps,
)
from pool_managerd.model_files import ModelFiles
from pool_managerd.models.tiny_gguf import write_tiny_model
from pool_managerd.preflight import NoPreflight
from tests.integration.pool_managerd.gguf_models import WIDE, write_model

GIB = 1 << 30
WAIT_MS = 1_000
# What the tiny model takes on a GPU besides its context, with 2 slots of 1,024 tokens.
SMALL = 4 << 20


def gpu(name: str, free: int, total: int = 12 * GIB) -> Device:
    """A GPU with so many bytes free."""
    return Device(
        f"GPU-{name}",
        DeviceKind.GPU,
        "RTX 3060",
        memory_total_bytes=total,
        memory_free_bytes=free,
    )


ROOMY = HostMemory(64 * GIB, 32 * GIB)


@dataclass
class Box:
    """A machine whose memory a test changes, and whose time passes while somebody waits."""

    devices: tuple[Device, ...] = (gpu("a", 12 * GIB),)
    host: HostMemory = ROOMY
    on_look: Callable[["Box", int], None] = lambda _box, _number: None
    ledger: Ledger = field(default_factory=Ledger)
    elapsed_ms: int = 0
    looks: int = 0
    # When the devices were read; None: a moment ago, whenever somebody asks.
    read_at_ms: int | None = None

    def now_ms(self) -> int:
        """Time that passed in waits alone."""
        return self.elapsed_ms

    def wall_ns(self) -> int:
        """Nobody asks."""
        return 0

    async def pause(self, wait_ms: int) -> None:
        """Time passes, and the test changes what the next look sees."""
        assert wait_ms == LOOK_INTERVAL_MS
        self.elapsed_ms += wait_ms
        self.looks += 1
        assert self.looks < 100, "a wait is bounded"
        self.on_look(self, self.looks)

    def preflight(self) -> HostPreflight:
        """The check of this machine."""
        return HostPreflight(
            PreflightDeps(
                clock=self,
                files=ModelFiles(Config.model_validate({"pools": [POOL]}), self),
                ledger=self.ledger,
                devices=lambda _table: self.devices,
                read_at_ms=lambda: (
                    self.elapsed_ms + 1 if self.read_at_ms is None else self.read_at_ms
                ),
                wait_ms=WAIT_MS,
                host_memory=lambda: self.host,
                pause=self.pause,
            )
        )


POOL = {"pool_id": "p", "engine": {"kind": "mock"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_model(path)
    return path


def table(model: Path, pool_id: str = "p", gpu_layers: int = -1, **pool: object) -> PoolTable:
    """A pool with two slots on the GPU."""
    engine = {"kind": "embedded", "model_path": str(model), "model_id": "m", "slots": 2}
    engine |= {"ctx_per_slot": 1_024, "gpu_layers": gpu_layers}
    return PoolTable.model_validate({"pool_id": pool_id, "engine": engine, **pool})


def info(host_bytes: int | None = None, *device_bytes: int) -> EngineInfo:
    """What an engine says after its start."""
    return EngineInfo(
        "e", "1", "m", "", "s", 2, 64, host_bytes=host_bytes, device_bytes=device_bytes
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


async def test_what_the_engine_took_replaces_the_estimate(model: Path) -> None:
    """ORCH-3039: its own report, plus what no engine reports of the driver's context."""
    box = Box(devices=(gpu("a", 12 * GIB), gpu("b", 12 * GIB)))
    preflight, pool = box.preflight(), table(model)
    await preflight.memory(pool)

    await preflight.loaded(pool, info(7, 100, 200))

    assert box.ledger.claimed("GPU-a") == 100 + GPU_CONTEXT_BYTES
    assert box.ledger.claimed("GPU-b") == 200 + GPU_CONTEXT_BYTES
    assert box.ledger.claimed(HOST) == 7 + PROCESS_BYTES
    assert not box.ledger.loading_beside("other", frozenset({"GPU-a"}))
    preflight.gone("p")
    preflight.gone("p")
    assert box.ledger.claimed("GPU-a") == 0


async def test_an_engine_that_says_nothing_took_what_became_less_free(model: Path) -> None:
    """The driver's figures before and after; the host's belong to many programs."""
    box = Box()
    preflight, pool = box.preflight(), table(model)
    await preflight.memory(pool)
    host_before = box.ledger.claimed(HOST)
    box.devices = (gpu("a", 9 * GIB),)
    box.host = replace(box.host, free=GIB)

    await preflight.loaded(pool, info())

    assert box.ledger.claimed("GPU-a") == 3 * GIB
    assert box.ledger.claimed(HOST) == host_before


async def test_what_was_read_before_the_model_was_loaded_is_not_believed(model: Path) -> None:
    """The difference is that of a reading that began after the start had ended."""
    box = Box(elapsed_ms=5_000, read_at_ms=4_900)
    preflight, pool = box.preflight(), table(model)
    await preflight.memory(pool)
    box.devices = (gpu("a", 11 * GIB),)

    def read(box: Box, number: int) -> None:
        if number == 2:
            box.devices, box.read_at_ms = (gpu("a", 9 * GIB),), box.elapsed_ms - 1

    box.on_look = read
    await preflight.loaded(pool, info())

    assert box.ledger.claimed("GPU-a") == 3 * GIB
    assert box.looks == 2


async def test_without_a_reading_in_time_the_estimate_stands(model: Path) -> None:
    """A driver that hangs does not keep the pool from serving, nor make its claim nonsense."""
    box = Box(elapsed_ms=5_000, read_at_ms=4_900)
    preflight, pool = box.preflight(), table(model)
    await preflight.memory(pool)
    expected = box.ledger.claimed("GPU-a")
    box.devices = (gpu("a", 11 * GIB),)

    await preflight.loaded(pool, info())

    assert box.ledger.claimed("GPU-a") == expected
    assert box.elapsed_ms == 5_000 + WAIT_MS
    assert not box.ledger.loading_beside("other", frozenset({"GPU-a"}))


@pytest.mark.parametrize("disturbed", ["began_before", "began_after", "ended"])
async def test_what_two_engines_changed_at_once_is_nobodys(model: Path, disturbed: str) -> None:
    """The difference of a device on which another engine came or went meanwhile says nothing."""
    box = Box()
    preflight, pool, other = box.preflight(), table(model), table(model, "q")
    if disturbed != "began_after":
        await preflight.memory(other)
    if disturbed == "ended":
        await preflight.loaded(other, info(7, 100))
    await preflight.memory(pool)
    if disturbed == "began_after":
        await preflight.memory(other)
    if disturbed == "ended":
        preflight.gone("q")
    expected = box.ledger.entries("p")["GPU-a"].estimated
    box.devices = (gpu("a", 2 * GIB),)

    await preflight.loaded(pool, info())

    assert box.ledger.entries("p")["GPU-a"].taken is None
    assert expected == box.ledger.entries("p")["GPU-a"].estimated


async def test_what_an_ended_engine_held_is_not_taken_for_room_that_was_lost(model: Path) -> None:
    """An engine that does not tell what it takes begins after a reading without the former one."""
    box = Box()
    preflight = box.preflight()
    pool = served(model, gpu_layers=-1, ctx_per_slot=1_024)
    await preflight.memory(pool)
    preflight.gone("p")
    box.devices, box.read_at_ms = (gpu("a", 8 * GIB),), -1

    def read(box: Box, _number: int) -> None:
        box.devices, box.read_at_ms = (gpu("a", 12 * GIB),), box.elapsed_ms - 1

    box.on_look = read
    await preflight.memory(pool)
    box.devices, box.read_at_ms = (gpu("a", 7 * GIB),), box.elapsed_ms + 1
    await preflight.loaded(pool, info())

    assert box.ledger.claimed("GPU-a") == 5 * GIB


async def test_a_file_that_nobody_understands_is_left_to_the_engine(tmp_path: Path) -> None:
    """No estimate, no refusal: the engine says what is wrong with it."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 99, 0, 0))
    box = Box(devices=(gpu("a", 0),))

    await box.preflight().memory(table(path))

    assert box.ledger.claimed("GPU-a") == 0


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


def served(model: Path, pool: dict[str, object] | None = None, **engine: object) -> PoolTable:
    """A pool whose llama-server, or another one, is launched with this model."""
    kind = {"kind": "llama_server", "model_id": "m", "slots": 2, "model_path": str(model)}
    launch = {"command": ["serve", "{model_path}"]}
    return PoolTable.model_validate(
        {"pool_id": "p", "engine": {**kind, "launch": launch, **engine}, **(pool or {})}
    )


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of config.json and 1 MiB of weights."""
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (tmp_path / "a.safetensors").write_bytes(bytes(1 << 20))
    return tmp_path


def vllm(folder: Path, **pool: object) -> PoolTable:
    """A pool of a launched vLLM."""
    engine = {"kind": "openai", "flavor": "vllm", "ctx_max": 4096}
    return served(folder, pool, **engine)


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


async def test_what_a_vllm_without_a_stated_share_takes_is_a_lower_bound(folder: Path) -> None:
    """The note says what would be better."""
    review = await Box().preflight().review(vllm(folder))

    assert review is not None
    assert review.needs["GPU-a"] < 3 * GIB
    assert "vram_claim_ratio would say it" in review.notes[0]


async def test_a_launched_engine_gets_its_model_as_the_embedded_one_does(model: Path) -> None:
    """A reference becomes a file with a digest; a reload another one. ORCH-3090."""
    preflight = Box().preflight()
    by_ref = served(model, model_path="", model_ref=f"file:{model}")

    started = await preflight.model(by_ref, "")
    reloaded = await preflight.model(served(Path("/absent/b.gguf")), str(model))

    for prepared in (started, reloaded):
        engine = prepared.table.engine
        assert isinstance(engine, LlamaServerEngine)
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
