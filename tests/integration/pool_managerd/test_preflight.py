"""The check before an engine starts, seen from the orchestrator. ORCH-3002, ORCH-3003."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from pool_managerd.models.tiny_gguf import TinyShape, write_tiny_model
from pool_managerd.server import PoolManager
from tests.conformance import llama_http
from tests.integration.pool_managerd.fakes import WAIT_S, FakeOrchestrator
from tests.integration.pool_managerd.harness import FAST, make_config
from tests.unit.pool_managerd.models.file_servers import FileServer, serving

Run = Callable[..., Awaitable[None]]


@pytest.fixture
async def run_pool(orchestrator: FakeOrchestrator, tmp_path: Path) -> AsyncIterator[Run]:
    """Starts a pool manager with one embedded engine on the processor."""
    running: list[tuple[PoolManager, asyncio.Task[None]]] = []
    write_tiny_model(tmp_path / "tiny.gguf")

    async def run(model_ref: str = "tiny.gguf", **pool: object) -> None:
        engine = {"kind": "embedded", "model_ref": model_ref, "model_id": "m"}
        config = make_config(
            orchestrator.address,
            pools=[{"pool_id": "p0", "engine": engine, **pool}],
            models={"directory": str(tmp_path), "cache_directory": str(tmp_path / "cache")},
            outbound={"enabled": True, "allow": ["127.0.0.1"]},
            supervision={**FAST, "freed_memory_wait_ms": 0},
        )
        manager = PoolManager(config)
        running.append((manager, asyncio.create_task(manager.run())))

    yield run
    for manager, task in running:
        manager.stop()
        async with asyncio.timeout(WAIT_S):
            await task


def newest(orchestrator: FakeOrchestrator) -> snapshot_pb2.PoolSnapshot:
    """The pool's newest snapshot."""
    snapshot = orchestrator.newest()
    assert snapshot is not None
    return snapshot


def halted(orchestrator: FakeOrchestrator) -> bool:
    """True once the pool was given up."""
    snapshot = orchestrator.newest()
    return (
        snapshot is not None
        and snapshot.state_reason == snapshot_pb2.POOL_STATE_REASON_RESTART_STORM
    )


async def test_a_pool_that_does_not_fit_says_why_in_one_sentence(
    run_pool: Run, orchestrator: FakeOrchestrator
) -> None:
    """The state's detail names the memory, the numbers and a remedy; no engine was started."""
    await run_pool(vram_claim_bytes=1 << 50)

    await orchestrator.until(lambda: halted(orchestrator))

    detail = newest(orchestrator).state_detail
    assert detail.startswith("the host lacks ")
    assert "1048576.0 GiB are needed" in detail
    assert "lower the pool's vram_claim, or use another device" in detail
    assert not any(snapshot.engine for snapshot in orchestrator.snapshots)


@pytest.fixture
async def silent_server() -> AsyncIterator[FileServer]:
    """Sends the first bytes of a file and no more."""
    async with serving(FileServer(stall=True)) as server:
        yield server


async def test_a_pool_that_fetches_its_model_says_how_far_it_is(
    silent_server: FileServer, run_pool: Run, orchestrator: FakeOrchestrator
) -> None:
    """And a stop does not wait for a server that has gone silent."""
    await run_pool(f"{silent_server.url}/m.gguf#sha256={'0' * 64}")

    await orchestrator.until(
        lambda: (
            (found := orchestrator.newest())
            and found.state == snapshot_pb2.POOL_STATE_STARTING
            and "/m.gguf#sha256=" in found.state_detail
            and found.state_detail.endswith(": 1000 bytes of 250.0 KiB")
        )
    )


async def test_free_memory_is_the_lower_of_ledger_and_driver(
    run_pool: Run, orchestrator: FakeOrchestrator
) -> None:
    """Design 5.4: what a pool claims is not free, though it has not taken it yet."""
    await run_pool(vram_claim_ratio=0.999_999, memory_check="warn")

    await orchestrator.until(orchestrator.ready)

    snapshot = newest(orchestrator)
    (device,) = snapshot.devices
    assert snapshot.vram_free_bytes <= device.memory_total_bytes // 100_000
    assert device.memory_free_bytes > snapshot.vram_free_bytes


async def test_a_reload_of_a_wrong_file_goes_back_to_the_former_model(
    run_pool: Run, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """A reference with a digest loads that file or none. OC-CTRL-2003, ORCH-3037."""
    await run_pool()
    await orchestrator.until(orchestrator.ready)
    before = newest(orchestrator)
    write_tiny_model(tmp_path / "other.gguf", TinyShape(seed=2))

    wrong = f"other.gguf#sha256={'0' * 64}"
    orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0", model_ref=wrong))
    await orchestrator.until(
        lambda: (found := orchestrator.ready()) and "has the digest" in found.state_detail
    )
    after = newest(orchestrator)
    assert after.model_digest == before.model_digest

    orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0", model_ref="other.gguf"))
    await orchestrator.until(
        lambda: (found := orchestrator.ready()) and found.model_digest != before.model_digest
    )


async def test_a_snapshot_tells_what_was_expected_and_what_was_taken(
    run_pool: Run, orchestrator: FakeOrchestrator
) -> None:
    """By memory; the estimate is there while the engine loads, its own word afterwards."""
    await run_pool()
    await orchestrator.until(orchestrator.ready)

    (claim,) = newest(orchestrator).memory_claims

    assert claim.memory == "host"
    assert claim.estimated_bytes > 150 << 20
    assert claim.HasField("taken_bytes")
    # The models of the tests are tiny: what the process itself takes is the greater part.
    assert abs(claim.taken_bytes - claim.estimated_bytes) < 8 << 20


async def test_a_context_that_is_cut_is_told_and_shown_as_it_is_served(
    run_pool: Run, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """llama.cpp serves no more than its model was trained with, and tells only its own log."""
    write_tiny_model(tmp_path / "short.gguf", TinyShape(context=512))
    engine = {"kind": "embedded", "model_ref": "short.gguf", "model_id": "m"}

    with capture_logs() as lines:
        await run_pool(engine={**engine, "ctx_per_slot": 2048})
        await orchestrator.until(orchestrator.ready)

    (cut,) = [line for line in lines if line["event"] == "context_cut"]
    assert (cut["asked_tokens"], cut["served_tokens"]) == (2048, 512)
    assert newest(orchestrator).ctx_max == 512


async def test_a_launched_server_is_reloaded_with_another_model_by_reference(
    run_pool: Run, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """References, digests and the way back are those of the embedded engine. OC-CTRL-2003."""
    write_tiny_model(tmp_path / "other.gguf", TinyShape(seed=2))
    options = ("-m", "{model_path}", "--port", "{port}", "-np", "{slots}", "-c", "{ctx_total}")
    launch = {
        "command": [sys.executable, str(Path(llama_http.__file__)), *options],
        "env": {"LLAMA_API_KEY": "{api_key}"},
        "stop_grace_ms": 1_000,
    }
    sizes = {"slots": 1, "ctx_per_slot": 256}
    engine = {"kind": "llama_server", "model_id": "m", "model_ref": "file:tiny.gguf", **sizes}

    await run_pool(engine={**engine, "launch": launch})
    await orchestrator.until(orchestrator.ready)
    before = newest(orchestrator)
    orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0", model_ref="absent.gguf"))
    await orchestrator.until(
        lambda: (found := orchestrator.ready()) and "does not exist" in found.state_detail
    )
    restored = newest(orchestrator)
    orchestrator.send(reload=dispatch_pb2.ReloadModel(pool_id="p0", model_ref="file:other.gguf"))
    await orchestrator.until(
        lambda: (found := orchestrator.ready()) and found.model_digest != before.model_digest
    )

    digests = [_sha256(tmp_path / name) for name in ("tiny.gguf", "other.gguf")]
    assert [before.model_digest, newest(orchestrator).model_digest] == digests
    assert restored.model_digest == before.model_digest
    assert [claim.memory for claim in before.memory_claims] == ["host"]


def _sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
