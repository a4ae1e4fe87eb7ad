"""The embedded engine's worker process: its life, its death, its log. ORCH-3001."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pool_managerd.engines import llama_protocol
from pool_managerd.engines.embedded import EmbeddedConfig, EmbeddedEngine
from pool_managerd.engines.embedded_worker import batch_tokens
from pool_managerd.engines.engine_log import LOG_LINE_CHARS, LOG_LINES, LogTail
from pool_managerd.engines.llama_wire import FrameReader
from pool_managerd.engines.port import (
    Failed,
    Failure,
    GenerationEvent,
    GenerationRequest,
    Piece,
    PreloadError,
    SamplingParams,
)

PARENT = """
import asyncio, sys
from pool_managerd.engines.embedded import EmbeddedConfig, EmbeddedEngine

async def main():
    engine = EmbeddedEngine(EmbeddedConfig(model_path=sys.argv[1], model_id="m"))
    await engine.start()
    print(engine.pid, flush=True)
    await engine.wait_exit()

asyncio.run(main())
"""


def engine_for(model: Path, **config: Any) -> EmbeddedEngine:
    """Returns an engine that is not started."""
    return EmbeddedEngine(EmbeddedConfig(model_path=model, model_id="m", **config))


async def test_a_stop_that_is_cancelled_leaves_no_worker_that_hangs(model: Path) -> None:
    """One that hangs in its driver does not read its order; the next engine needs its memory."""
    engine = engine_for(model)
    await engine.start()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.stop()

    async with asyncio.timeout(10):
        await engine.wait_exit()
    assert not psutil.pid_exists(engine.pid)


async def test_a_killed_worker_is_noticed_at_once(model: Path) -> None:
    """The exit is told with the signal's name, and stopping afterwards is harmless."""
    engine = engine_for(model)
    await engine.start()
    assert engine.pid is not None
    exit_news = asyncio.ensure_future(engine.wait_exit())

    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(1):
        ended = await exit_news
    await engine.stop()

    assert ended.failure is Failure.ENGINE_DIED
    assert "SIGKILL" in ended.message
    assert str(engine.pid) in ended.message


@pytest.mark.parametrize("stuck", [False, True])
def test_a_worker_does_not_outlive_a_killed_parent(model: Path, stuck: bool) -> None:
    """Even `kill -9` of the pool manager leaves no engine, not even one that reads no orders."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model)],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        if stuck:
            worker.suspend()

        parent.kill()

        worker.wait(timeout=5)
    assert not worker.is_running()


async def test_a_worker_exits_by_itself_when_it_is_stopped(model: Path) -> None:
    """The end of its standard input is enough; nobody has to kill it."""
    engine = engine_for(model)
    await engine.start()

    await engine.stop()

    assert "exited with status 0" in (await engine.wait_exit()).message


async def test_the_worker_sees_no_key_of_another_pool(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets what it needs to find its libraries. ORCH-3030."""
    monkeypatch.setenv("OTHER_API_KEY", "secret")
    engine = EmbeddedEngine(EmbeddedConfig(model_path=str(model), model_id="tiny"))

    await engine.start()
    environ = psutil.Process(engine.pid).environ()
    await engine.stop()

    assert environ["PATH"] == os.environ["PATH"]
    assert "OTHER_API_KEY" not in environ


async def test_a_draft_model_proposes_tokens_and_the_text_stays_the_models_own(
    model: Path,
) -> None:
    """Greedy text is the same; log probabilities, which would have gaps, are refused."""
    texts = []
    for draft in ("", str(model)):
        config = EmbeddedConfig(model_path=model, model_id="tiny", draft_model_path=draft)
        engine = EmbeddedEngine(config)
        info = await engine.start()
        sampling = SamplingParams(seed=1, temperature=0.0, max_tokens=12)
        plain = GenerationRequest("r", "hello", sampling)
        events = [event async for event in engine.generate(plain)]
        texts.append("".join(event.text for event in events if isinstance(event, Piece)))
        wanted = replace(plain, sampling=replace(sampling, logprobs=1))
        last = [event async for event in engine.generate(wanted)][-1]
        await engine.stop()

        assert ("logprobs" in info.extensions) is (draft == "")
        assert isinstance(last, Failed) is (draft != "")

    assert texts[0] == texts[1] != ""
    assert info.sampler_profile_version == "llamacpp-1-draft"
    assert isinstance(last, Failed)
    assert "logprobs is not supported with a draft model" in last.message


async def test_a_stuck_worker_is_killed(model: Path) -> None:
    """A worker that cannot follow the order to exit is gone after the grace."""
    engine = engine_for(model)
    await engine.start()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)

    await engine.stop()

    assert "SIGKILL" in (await engine.wait_exit()).message


async def test_a_broken_model_fails_the_start_with_the_engines_words(tmp_path: Path) -> None:
    """What llama.cpp complained about is part of the message, and no process stays."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    engine = engine_for(path)

    with pytest.raises(PreloadError) as raised:
        await engine.start()

    assert "broken.gguf" in str(raised.value)
    assert engine.log_tail
    assert any(line in str(raised.value) for line in engine.log_tail)
    assert engine.pid is not None
    assert not psutil.pid_exists(engine.pid)


@pytest.fixture
def odd_model(model: Path, tmp_path: Path) -> Path:
    """A model of an architecture that nobody knows."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(model.read_bytes().replace(b"llama", b"lxama"))
    return path


async def test_the_cause_of_a_failed_load_is_quoted(odd_model: Path) -> None:
    """Not only that something failed because of it."""
    with pytest.raises(PreloadError, match="unknown model architecture: 'lxama'"):
        await engine_for(odd_model).start()


async def test_a_loaded_engine_logs_errors_alone(model: Path) -> None:
    """Finer lines are for the load: they tell what memory was taken, then they would cost time."""
    engine = engine_for(model)
    await engine.start()
    loaded = engine.log_tail

    request = GenerationRequest("r#1", "hello", SamplingParams(seed=1, max_tokens=4))
    events = [event async for event in engine.generate(request)]
    await engine.stop()

    assert events
    assert any("buffer size" in line for line in loaded)
    assert not [line for line in engine.log_tail if "slot" in line and "processing" in line]


async def test_a_load_beyond_its_bound_fails_and_leaves_no_process(model: Path) -> None:
    """The wait for a model has an end."""
    engine = engine_for(model, load_timeout_ms=1)

    with pytest.raises(PreloadError, match="within 1 ms"):
        await engine.start()

    assert engine.pid is None or not psutil.pid_exists(engine.pid)


async def test_layers_for_a_gpu_that_is_not_there_are_no_silent_fallback(model: Path) -> None:
    """Whoever asks for a GPU does not get the processor instead."""
    engine = engine_for(model, gpu_layers=1, devices=("none",))

    with pytest.raises(PreloadError, match="sees no GPU"):
        await engine.start()


async def test_a_start_that_is_cancelled_leaves_no_process(model: Path) -> None:
    """A pool manager may give up at any moment."""
    engine = engine_for(model)
    start = asyncio.ensure_future(engine.start())
    while engine.pid is None:  # noqa: ASYNC110 - lets the start go on, step by step
        await asyncio.sleep(0)

    start.cancel()
    await asyncio.gather(start, return_exceptions=True)

    assert not psutil.pid_exists(engine.pid)


@pytest.mark.parametrize(
    "config",
    [
        {"slots": 0},
        {"ctx_per_slot": 0},
        {"threads": 0},
        {"load_timeout_ms": 0},
        {"slots": 2, "deterministic": True},
    ],
)
def test_senseless_configurations_are_refused(config: dict[str, Any]) -> None:
    """They fail where they are made, not at the start."""
    with pytest.raises(ValueError, match=r"at least 1|needs slots"):
        EmbeddedConfig(model_path="x", model_id="m", **config)


def test_the_log_tail_is_bounded_in_lines_and_line_length() -> None:
    """An engine that logs without end costs a fixed amount of memory."""
    tail = LogTail()

    for _ in range(3):
        for number in range(LOG_LINES):
            tail.feed(f"line {number} {'x' * 5_000}".encode())
            tail.feed("é".encode()[:1])
            tail.feed(b"\n")
        tail.feed(b"y" * 100_000)
    lines = tail.last(10**6)

    assert len(lines) <= LOG_LINES + 1
    assert max(map(len, lines)) <= LOG_LINE_CHARS
    assert lines[-1].startswith("y")
    assert tail.last(2) == lines[-2:]


async def test_it_tells_what_its_cache_takes(model: Path) -> None:
    """LO-205: 256 bytes a token, and llama.cpp rounds the context of a slot up to 1,024.

    llama.cpp prints "KV buffer size = 0.75 MiB" for three such slots. The weights of a split are
    taken; without a GPU they say nothing.
    """
    config = EmbeddedConfig(
        model_path=model, model_id="m", slots=3, ctx_per_slot=1_000, tensor_split=(2, 1)
    )
    engine = EmbeddedEngine(config)

    info = await engine.start()
    await engine.stop()

    assert (info.ctx_max, info.kv_preallocated) == (1_024, True)
    assert (info.kv_bytes_per_token, info.kv_slot_bytes) == (256, 1_024 * 256)


async def test_a_prompt_is_computed_in_small_parts(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two of them llama-server sees a cancel."""
    processed: list[int] = []

    class Watching(FrameReader):
        def read(self, payload: bytes) -> list[GenerationEvent]:
            progress = json.loads(payload).get("prompt_progress")
            if progress is not None:
                processed.append(progress["processed"])
            return super().read(payload)

    monkeypatch.setattr(llama_protocol, "FrameReader", Watching)
    engine = engine_for(model)
    await engine.start()
    request = GenerationRequest(
        request_id="r-1",
        prompt="amber lantern " * 40,
        sampling=SamplingParams(seed=1, max_tokens=1),
    )

    async for _ in engine.generate(request):
        pass
    await engine.stop()

    parts = [later - earlier for earlier, later in itertools.pairwise([0, *processed])]
    assert sum(parts) > 64
    assert max(parts) <= 16


def test_every_slot_has_room_beside_a_prompt() -> None:
    """Generations that all go on never keep a prompt out of the batch."""
    for slots in (1, 2, 16, 256):
        assert batch_tokens(slots, 0) == slots - 1 + 16
        assert batch_tokens(slots, -1) == slots - 1 + 256
