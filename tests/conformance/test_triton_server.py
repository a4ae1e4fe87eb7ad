"""What only a real Triton server can show; the rest is in the common suite. ORCH-3057."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from pool_managerd.config.schema import PoolTable
from pool_managerd.engines.launched import LaunchedEngine
from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    Failed,
    Failure,
    Finish,
    Finished,
    Piece,
    PreloadError,
    Usage,
)
from pool_managerd.engines.triton import TritonConfig, TritonEngine
from pool_managerd.engines.triton_busy import BusyGauge
from pool_managerd.engines.triton_client import Target, TritonClient
from pool_managerd.engines.triton_profiles import PLAIN
from pool_managerd.factory import make_engine
from pool_managerd.pools.selftest import self_test
from tests.conformance.engine_cases import triton_config
from tests.conformance.generations import collect, end_of, request, text_of
from tests.conformance.triton_server import (
    BUSY_METRIC,
    CTX_MAX,
    MODEL,
    TritonServer,
    command,
    missing,
    remove_regions,
    running_server,
    search_path,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
CONFIRM_MS = 5_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonServer]:
    """A server without a model, which loads it when it is asked to."""
    async with running_server(tmp_path_factory.mktemp("triton") / "log", empty=True) as server:
        client = TritonClient(Target(address=server.address, model=MODEL))
        client.open()
        await client.load(30_000)
        await client.close()
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def engine(server: TritonServer) -> AsyncIterator[TritonEngine]:
    """An adapter that can see how busy the model is."""
    engine = TritonEngine(triton_config(server.address, server.metrics_url))
    await engine.start()
    yield engine
    await engine.stop()


def gauge_of(server: TritonServer) -> BusyGauge:
    """Returns the model's own count of requests at work."""
    return BusyGauge(server.metrics_url, MODEL, PLAIN, BUSY_METRIC)


async def test_the_server_says_who_it_is(server: TritonServer) -> None:
    """Version, tensors and what they make possible."""
    engine = TritonEngine(triton_config(server.address))

    info = await engine.start()

    assert info.engine_version == "2.51.0"
    assert info.extensions == ("chat_template", "token_ids")
    assert await engine.healthy()
    await engine.stop()


async def test_a_cancel_reaches_the_model(server: TritonServer, engine: TritonEngine) -> None:
    """Its own count of requests at work falls to none, long before it would end by itself."""
    gauge = gauge_of(server)
    endless = request("endless", max_tokens=2_000, engine_options={"interval_ms": 20})
    generation = engine.generate(endless)
    assert isinstance(await anext(generation), Piece)
    assert await gauge.read() == 1

    await generation.aclose()
    await engine.confirm_idle("endless", CONFIRM_MS)

    assert await gauge.read() == 0
    await gauge.close()


async def test_a_model_that_does_not_listen_is_unconfirmed(
    server: TritonServer, engine: TritonEngine
) -> None:
    """Triton forgets the stream at once, so only the gauge shows that the model goes on."""
    options = {"interval_ms": 10, "deaf": True}
    generation = engine.generate(request("deaf", max_tokens=100, engine_options=options))
    assert isinstance(await anext(generation), Piece)

    await generation.aclose()
    with pytest.raises(CancelUnconfirmedError):
        await engine.confirm_idle("deaf", 50)

    # It comes to its own end, and then the slot is free.
    await engine.confirm_idle("deaf", CONFIRM_MS)
    assert isinstance(end_of(await collect(engine, request())), Finished)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("CUDA out of memory", Failure.DEVICE_OUT_OF_MEMORY),
        ("something else", Failure.ENGINE_ERROR),
    ],
)
async def test_an_error_of_the_model_ends_its_generation(
    engine: TritonEngine, text: str, failure: Failure
) -> None:
    """With what came before it, and the model serves on."""
    options = {"fail_after_tokens": 3, "failure": text}

    events = await collect(engine, request(engine_options=options))

    end = end_of(events)
    assert isinstance(end, Failed)
    assert (end.failure, end.message, end.usage) == (failure, text, Usage(tokens_out=3))
    assert isinstance(end_of(await collect(engine, request())), Finished)


async def test_the_models_own_end_and_counts_are_told(engine: TritonEngine) -> None:
    """The last response is an empty one, which only comes because it is asked for."""
    events = await collect(
        engine, request(prompt="one two three", engine_options={"token_count": 2})
    )

    assert end_of(events) == Finished(Finish.EOS, Usage(tokens_in=3, tokens_out=2))
    assert len(text_of(events).split()) == 2


async def killed(process: psutil.Process) -> None:
    """Ends a process that is not ours, and returns once it is dead; nobody may reap it."""
    descriptor, died = os.pidfd_open(process.pid), asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, died.set)
    process.kill()
    async with asyncio.timeout(5):
        await died.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)


async def test_a_model_whose_process_dies_is_noticed_with_the_next_request(tmp_path: Path) -> None:
    """Triton goes on to call it ready, and an open stream just stays silent."""
    async with running_server(tmp_path / "log") as server:
        engine = TritonEngine(triton_config(server.address))
        await engine.start()
        children = psutil.Process(server.process.pid).children()
        (stub,) = [child for child in children if "stub" in child.name()]
        await killed(stub)

        end = end_of(await collect(engine, request()))

        assert isinstance(end, Failed)
        assert (end.failure, "Stub process" in end.message) == (Failure.ENGINE_DIED, True)
        assert not await engine.healthy()
        await engine.stop()


async def test_what_the_server_refuses_is_the_requests_fault(server: TritonServer) -> None:
    """An input of the wrong shape never reaches the model."""
    engine = TritonEngine(triton_config(server.address))
    await engine.start()
    binding = engine._binding
    assert binding is not None
    prompt = binding.inputs["prompt"]
    object.__setattr__(prompt, "rank", 2)

    end = end_of(await collect(engine, request()))

    assert isinstance(end, Failed)
    assert end.failure is Failure.INVALID_REQUEST
    assert "shape" in end.message
    await engine.stop()


async def echo(server: TritonServer, profile: str, **sampling: Any) -> dict[str, Any]:
    """Returns what a model with the tensors of a backend was given, and its shapes."""
    engine = TritonEngine(
        TritonConfig(
            target=Target(address=server.address, model=f"{profile}_shaped"),
            model_id="m",
            slots=1,
            ctx_max=CTX_MAX,
            profile=profile,
            load=True,
        )
    )
    await engine.start()
    events = await collect(engine, request(**sampling))
    await engine.stop()
    assert isinstance(end_of(events), Finished)
    given: dict[str, Any] = json.loads(text_of(events))
    return given


async def test_triton_takes_what_the_vllm_profile_sends(server: TritonServer) -> None:
    """By the backend's own tensors; the sampling is one JSON object."""
    given = await echo(server, "vllm", top_k=7, stop=("x", "y"))

    sampling = json.loads(given.pop("sampling_parameters")["values"][0])
    assert sampling == {"max_tokens": 12, "seed": 1, "top_k": 7, "stop": ["x", "y"]}
    assert given.pop("text_input") == {"shape": [1], "values": ["once upon a time"]}
    assert given == {
        name: {"shape": [1], "values": [True]}
        for name in (
            "stream",
            "exclude_input_in_output",
            "return_finish_reason",
            "return_num_input_tokens",
            "return_num_output_tokens",
        )
    }


async def test_triton_takes_what_the_tensorrt_llm_profile_sends(server: TritonServer) -> None:
    """With the batch dimension of its tensors. The echo escapes the stop sequences, so is whole."""
    options = {"bad_words": "no", "repetition_penalty": 1.5}

    given = await echo(server, "tensorrt_llm", top_p=0.5, stop=("é", "日"), engine_options=options)

    flags = ("exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens")
    assert given == {
        "text_input": {"shape": [1, 1], "values": ["once upon a time"]},
        "max_tokens": {"shape": [1, 1], "values": [12]},
        "seed": {"shape": [1, 1], "values": [1]},
        "top_p": {"shape": [1, 1], "values": [0.5]},
        "stop_words": {"shape": [1, 2], "values": ["é", "日"]},
        "bad_words": {"shape": [1, 1], "values": ["no"]},
        "repetition_penalty": {"shape": [1, 1], "values": [1.5]},
        "stream": {"shape": [1, 1], "values": [True]},
        **{name: {"shape": [1, 1], "values": [True]} for name in flags},
    }


async def test_many_streams_share_one_connection(
    engine: TritonEngine, server: TritonServer
) -> None:
    """Each gets its own text to its end."""
    many = TritonEngine(triton_config(server.address, slots=32))
    await many.start()
    wanted = [request(f"r{n}", seed=n, max_tokens=40) for n in range(32)]

    together = await asyncio.gather(*(collect(many, one) for one in wanted))
    alone = [await collect(engine, one) for one in wanted[:4]]

    assert [text_of(events) for events in together[:4]] == [text_of(events) for events in alone]
    assert all(end_of(events).usage.tokens_out == 40 for events in together)
    await many.stop()


@pytest.mark.parametrize("load", [False, True])
async def test_a_model_that_is_not_there_fails_the_start(server: TritonServer, load: bool) -> None:
    """With the server's own reason where it was asked to load it."""
    engine = TritonEngine(
        TritonConfig(
            target=Target(address=server.address, model="nobody"),
            model_id="m",
            slots=1,
            ctx_max=CTX_MAX,
            load=load,
        )
    )

    with pytest.raises(PreloadError) as raised:
        await engine.start()

    words = "does not load nobody: failed to load" if load else "model nobody is not there"
    assert words in str(raised.value)


async def test_a_model_is_loaded_and_answers(tmp_path: Path) -> None:
    """By a server that was started without any."""
    async with running_server(tmp_path / "log", empty=True) as server:
        config = triton_config(server.address)
        engine = TritonEngine(
            TritonConfig(target=config.target, model_id="m", slots=1, ctx_max=CTX_MAX, load=True)
        )

        await engine.start()

        assert isinstance(end_of(await collect(engine, request())), Finished)
        await engine.stop()


async def test_a_launched_server_whose_model_died_fails_the_self_test() -> None:
    """Triton calls the model ready; a start of the pool finds out. Nothing is left behind."""
    prefix = f"llamaorch_test_{os.getpid()}_launched"
    launched_by = command("{port}", "{port_2}", prefix)
    launch = {
        "command": [*launched_by, f"--load-model={MODEL}"],
        "env": {"PATH": search_path()},
        # Its port for metrics opens a moment after the one for requests.
        "attach_timeout_ms": 30_000,
    }
    about = {"kind": "triton", "model": MODEL, "model_id": "m", "slots": 2, "ctx_max": CTX_MAX}
    gauge = {"metrics_url": "http://127.0.0.1:{port_2}/metrics", "busy_metric": BUSY_METRIC}
    table = {"pool_id": "p", "devices": ["cpu"], "engine": {**about, **gauge, "launch": launch}}
    engine = make_engine(PoolTable.model_validate(table), "")
    assert isinstance(engine, LaunchedEngine)
    try:
        info = await engine.start()
        healthy = await self_test(engine, info, 30_000, CONFIRM_MS)
        children = psutil.Process(engine.pid).children(recursive=True)
        (stub,) = [child for child in children if "stub" in child.name()]
        await killed(stub)
        dead = await self_test(engine, info, 30_000, CONFIRM_MS)
    finally:
        await engine.stop()
        remove_regions(prefix)

    assert healthy == ""
    assert "generating 2 tokens failed: engine_died" in dead
    assert engine.pid is not None
    assert not psutil.pid_exists(engine.pid)
