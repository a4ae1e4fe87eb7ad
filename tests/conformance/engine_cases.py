"""Every engine adapter that runs on a plain machine, opened the same way.

`transformers` is the adapter `openai` before `transformers serve`, `openai_llama_cpp` before the
HTTP server inside xllamacpp; the `built_…` ones stand before a llama-server built from source. The
`launched_…` ones are `llama_server` with a `launch` table, made as the pool manager makes it.
"""

import functools
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pool_managerd.config.schema import PoolTable
from pool_managerd.engines.embedded import EmbeddedConfig, EmbeddedEngine
from pool_managerd.engines.launched import LaunchedEngine
from pool_managerd.engines.llama_server import LlamaServerConfig, LlamaServerEngine
from pool_managerd.engines.mock import MockConfig, MockEngine
from pool_managerd.engines.mock_script import MockScript
from pool_managerd.engines.openai import OpenAiConfig, OpenAiEngine
from pool_managerd.engines.port import Engine, EngineInfo, SamplingParams
from pool_managerd.engines.triton import TritonConfig, TritonEngine
from pool_managerd.engines.triton_client import Target
from pool_managerd.factory import make_engine
from tests.conformance.foreign_servers import (
    LLAMA_SERVER,
    TRANSFORMERS,
    Foreign,
    start_llama_server,
    start_transformers,
    write_hf_model,
)
from tests.conformance.triton_server import BUSY_METRIC, CTX_MAX, MODEL, missing, start_server

CASES = ("mock", "embedded", "llama_server", "openai_llama_cpp", "triton", "launched_llama_server")
FOREIGN_CASES = {
    "transformers": (TRANSFORMERS, "make engines-transformers"),
    "built_llama_server": (LLAMA_SERVER, "make engines-llama-server"),
    "built_openai": (LLAMA_SERVER, "make engines-llama-server"),
    "launched_built_llama_server": (LLAMA_SERVER, "make engines-llama-server"),
}
UNREACHABLE = "http://127.0.0.1:9"
_LLAMA_HTTP = str(Path(__file__).with_name("llama_http.py"))
_MULTI_BYTE_GRAMMAR = 'root ::= "日本é🚀 "+'


def case_params() -> list[Any]:
    """All cases as test parameters; what is not installed is skipped by the name of its target."""
    return [
        *CASES,
        *(
            pytest.param(
                name,
                marks=[
                    pytest.mark.skipif(not program.exists(), reason=f"not there: run `{target}`"),
                    pytest.mark.timeout(300),
                ],
            )
            for name, (program, target) in FOREIGN_CASES.items()
        ),
    ]


@dataclass(frozen=True)
class Running:
    """A started engine. `kill` ends its process as `kill -9` would; `watched`: it has a process.

    `ids`: it reports token ids. `continues_chat`, `checks_context`: it can. `serial`: it computes
    one generation after the other, and has one slot.
    """

    engine: Engine
    info: EngineInfo
    kill: Callable[[], None]
    close: Callable[[], Awaitable[None]]
    watched: bool = True
    pid: int | None = None
    endless: Mapping[str, object] = field(default_factory=dict)
    multi_byte: SamplingParams = field(default_factory=lambda: SamplingParams(seed=1))
    ids: bool = True
    continues_chat: bool = True
    checks_context: bool = True
    serial: bool = False


async def open_case(name: str, model: Path, *, slots: int = 2) -> Running:
    """Starts the engine `name`; with one slot it runs in its deterministic profile."""
    match name:
        case "mock":
            return await _open_mock(slots)
        case "transformers":
            return await _open_transformers(slots)
        case "triton":
            return await _open_triton(model.parent, slots)
        case "launched_llama_server" | "launched_built_llama_server":
            return await _open_launched(name, model, slots)
        case "built_llama_server" | "built_openai":
            return await _open_built(name, model, slots)
    return await {
        "embedded": _open_embedded,
        "llama_server": _open_llama_server,
        "openai_llama_cpp": _open_openai,
    }[name](model, slots)


def failing_to_start(name: str) -> tuple[Engine, str]:
    """Returns an engine that cannot start, and words that its complaint must hold."""
    match name:
        case "mock":
            return MockEngine(MockConfig(preload_shortfalls=("no luck",))), "no luck"
        case "embedded":
            config = EmbeddedConfig(model_path="/nowhere/x.gguf", model_id="x")
            return EmbeddedEngine(config), "/nowhere/x.gguf does not exist"
        case "openai_llama_cpp":
            config_of_openai = OpenAiConfig(base_url=UNREACHABLE, flavor="llama_cpp", model_id="x")
            return OpenAiEngine(config_of_openai), UNREACHABLE
        case "triton":
            address = UNREACHABLE.removeprefix("http://")
            return TritonEngine(triton_config(address, slots=1)), address
        case "launched_llama_server":
            return _launched(("/nowhere/llama-server",), Path("x.gguf"), 1), "/nowhere/llama-server"
    config_of_foreign = LlamaServerConfig(base_url=UNREACHABLE, model_id="x")
    return LlamaServerEngine(config_of_foreign), UNREACHABLE


async def _open_mock(slots: int) -> Running:
    engine = MockEngine(
        MockConfig(slots=slots, ctx_max=2048, script=MockScript(token_count=1_000_000))
    )
    multi_byte = SamplingParams(
        seed=1, max_tokens=20, engine_options={"mock": {"multi_byte": True}}
    )
    return Running(
        engine,
        await engine.start(),
        engine.die,
        engine.stop,
        endless={"mock": {"token_interval_ms": 1}},
        multi_byte=multi_byte,
    )


async def _open_embedded(model: Path, slots: int) -> Running:
    engine = EmbeddedEngine(
        EmbeddedConfig(model_path=model, model_id="m", slots=slots, deterministic=slots == 1)
    )
    info = await engine.start()
    pid = engine.pid
    assert pid is not None
    return Running(
        engine,
        info,
        lambda: os.kill(pid, signal.SIGKILL),
        engine.stop,
        pid=pid,
        multi_byte=SamplingParams(seed=1, max_tokens=25, grammar=_MULTI_BYTE_GRAMMAR),
    )


async def _open_llama_server(model: Path, slots: int) -> Running:
    server = await _open_embedded(model, slots)
    assert isinstance(server.engine, EmbeddedEngine)
    engine = LlamaServerEngine(attachment(server.engine, deterministic=slots == 1))
    info = await engine.start()

    async def close() -> None:
        await engine.stop()
        await server.close()

    return replace(server, engine=engine, info=info, close=close, watched=False, pid=None)


def _launched(program: tuple[str, ...], model: Path, slots: int) -> LaunchedEngine:
    options = ("-m", "{model_path}", "--port", "{port}", "-np", "{slots}", "-c", "{ctx_total}")
    engine = make_engine(
        PoolTable.model_validate(
            {
                "pool_id": "p",
                "devices": ["cpu"],
                "engine": {
                    "kind": "llama_server",
                    "model_id": "m",
                    "model_path": str(model),
                    "slots": slots,
                    "ctx_per_slot": 2048,
                    "deterministic": slots == 1,
                    "launch": {
                        "command": [*program, *options],
                        "env": {"LLAMA_API_KEY": "{api_key}"},
                    },
                },
            }
        ),
        "",
    )
    assert isinstance(engine, LaunchedEngine)
    return engine


async def _open_launched(name: str, model: Path, slots: int) -> Running:
    program = (sys.executable, _LLAMA_HTTP)
    if name == "launched_built_llama_server":
        flags = ("-t", "1", "-tb", "1", "-b", "256", "--slots", "--no-kv-unified", "--offline")
        program = (str(LLAMA_SERVER), *flags)
    engine = _launched(program, model, slots)
    info = await engine.start()
    pid = engine.pid
    assert pid is not None
    return Running(
        engine,
        info,
        lambda: os.kill(pid, signal.SIGKILL),
        engine.stop,
        pid=pid,
        multi_byte=SamplingParams(seed=1, max_tokens=25, grammar=_MULTI_BYTE_GRAMMAR),
    )


async def _open_openai(model: Path, slots: int) -> Running:
    server = await _open_embedded(model, slots)
    assert isinstance(server.engine, EmbeddedEngine)
    where = attachment(server.engine)
    engine = OpenAiEngine(
        OpenAiConfig(
            base_url=where.base_url,
            api_key=where.api_key,
            flavor="llama_cpp",
            model_id="m",
            deterministic=slots == 1,
        )
    )
    info = await engine.start()

    async def close() -> None:
        await engine.stop()
        await server.close()

    return replace(
        server, engine=engine, info=info, close=close, watched=False, pid=None, ids=False
    )


async def _open_transformers(slots: int) -> Running:
    folder = _hf_model()
    foreign = await start_transformers(Path(folder.name))
    engine = OpenAiEngine(
        OpenAiConfig(
            base_url=foreign.base_url,
            flavor="transformers",
            model_id="m",
            served_model=folder.name,
            slots=1,
            ctx_max=2048,
            deterministic=slots == 1,
        )
    )
    return replace(
        await _attached(engine, foreign),
        multi_byte=SamplingParams(seed=1, temperature=1.0, max_tokens=60),
        ids=False,
        continues_chat=False,
        checks_context=False,
        serial=True,
    )


@functools.cache
def _hf_model() -> tempfile.TemporaryDirectory[str]:
    """One model for all tests; the folder goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="llamaorch-hf-")
    write_hf_model(Path(folder.name))
    return folder


async def _open_built(name: str, model: Path, slots: int) -> Running:
    foreign = await start_llama_server(model, slots)
    deterministic, is_native = slots == 1, name == "built_llama_server"
    engine: Engine
    if is_native:
        engine = LlamaServerEngine(
            LlamaServerConfig(base_url=foreign.base_url, model_id="m", deterministic=deterministic)
        )
    else:
        engine = OpenAiEngine(
            OpenAiConfig(
                base_url=foreign.base_url,
                flavor="llama_cpp",
                model_id="m",
                deterministic=deterministic,
            )
        )
    return replace(
        await _attached(engine, foreign),
        multi_byte=SamplingParams(seed=1, max_tokens=25, grammar=_MULTI_BYTE_GRAMMAR),
        ids=is_native,
    )


async def _attached(engine: Engine, foreign: Foreign) -> Running:
    async def close() -> None:
        await engine.stop()
        foreign.kill()

    try:
        info = await engine.start()
    except BaseException:
        foreign.kill()
        raise
    return Running(engine, info, foreign.kill, close, watched=False)


def attachment(server: EmbeddedEngine, *, deterministic: bool = False) -> LlamaServerConfig:
    """Returns how a foreign adapter attaches to the HTTP server of an embedded engine."""
    assert server._protocol is not None
    endpoint = server._protocol._http._endpoint
    return LlamaServerConfig(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        model_id="m",
        deterministic=deterministic,
    )


async def _open_triton(folder: Path, slots: int) -> Running:
    if missing():
        pytest.skip(missing())
    server = await start_server(folder / "triton.log")
    engine = TritonEngine(triton_config(server.address, server.metrics_url, slots=slots))

    async def close() -> None:
        await engine.stop()
        await server.close()

    try:
        info = await engine.start()
    except BaseException:
        await server.close()
        raise
    return Running(
        engine,
        info,
        server.kill,
        close,
        watched=False,
        endless={"interval_ms": 6},
        multi_byte=SamplingParams(seed=1, max_tokens=20, engine_options={"multi_byte": True}),
    )


def triton_config(address: str, metrics_url: str = "", *, slots: int = 2) -> TritonConfig:
    """Returns how the adapter attaches to the scripted model."""
    return TritonConfig(
        target=Target(address=address, model=MODEL),
        model_id="m",
        slots=slots,
        ctx_max=CTX_MAX,
        deterministic=slots == 1,
        metrics_url=metrics_url,
        busy_metric=BUSY_METRIC if metrics_url else "",
    )
