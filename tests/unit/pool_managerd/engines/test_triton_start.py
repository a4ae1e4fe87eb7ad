"""How the Triton adapter attaches, and what it says when something is missing. ORCH-3057."""

import socket
from typing import Any

import pytest

from pool_managerd.engines.port import PreloadError
from pool_managerd.engines.triton import TritonConfig, TritonEngine
from pool_managerd.engines.triton_client import Target
from tests.conformance.triton_replay import (
    VLLM_INPUTS,
    Replay,
    engine_of,
    events_of,
)


async def shortfalls_of(engine: TritonEngine) -> str:
    """Returns why an engine cannot start."""
    with pytest.raises(PreloadError) as raised:
        await engine.start()
    assert not await engine.healthy()
    return str(raised.value)


async def test_the_engine_says_what_it_serves(replay: Replay) -> None:
    """Version and model come from the server, slots and context from the operator."""
    engine = engine_of(replay)

    info = await engine.start()
    again = await engine_of(replay).start()
    replay.inputs = replay.inputs[:-1]
    changed = await engine_of(replay).start()
    await engine.stop()

    assert (info.engine, info.engine_version) == ("triton", "2.51.0-replay")
    assert (info.model_id, info.slots_total, info.ctx_max) == ("x", 2, 100)
    assert info.sampler_profile_version == "triton-plain-1"
    assert info.model_digest.startswith("unverified:")
    assert info.model_digest == again.model_digest != changed.model_digest
    assert not info.deterministic


async def test_a_model_that_loads_is_waited_for(replay: Replay) -> None:
    """The start returns once the model is ready."""
    replay.loading_answers = 2
    engine = engine_of(replay)

    await engine.start()

    assert replay.loading_answers == 0
    await engine.stop()


async def test_a_model_that_loads_too_long_fails_the_start(replay: Replay) -> None:
    """With the wait in the message."""
    replay.loading_answers = 1_000_000

    message = await shortfalls_of(engine_of(replay, load_timeout_ms=50))

    assert message == "model m is not ready after 50 ms"


async def test_the_model_is_loaded_where_that_is_configured(replay: Replay) -> None:
    """Once, and only if it does not serve yet."""
    replay.loading_answers, replay.state = 1_000_000, ""
    engine = engine_of(replay, load=True)
    await engine.start()
    other = engine_of(replay, load=True)
    await other.start()

    assert replay.loaded == ["m"]
    await engine.stop()
    await other.stop()


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        (
            {"loading_answers": 9, "state": ""},
            {},
            "model m is not there; a server in explicit mode",
        ),
        (
            {"loading_answers": 9, "state": "UNAVAILABLE", "state_reason": "no numpy"},
            {},
            "model m is unavailable (no numpy)",
        ),
        (
            {"loading_answers": 9, "load_error": "explicit model load is not allowed"},
            {"load": True},
            "does not load m: explicit model load is not allowed",
        ),
        ({"decoupled": False}, {}, "model_transaction_policy { decoupled: true }"),
        ({"outputs": [("answer", "BYTES")]}, {}, "no output text_output for the text, only answer"),
        ({"inputs": [("question", "BYTES", [1], False)]}, {}, "no input text_input or prompt"),
        ({}, {"tensors": {"seed": "dice"}}, "tensors.seed = 'dice', but the model's inputs are"),
        ({"inputs": VLLM_INPUTS}, {}, "the model takes no seed"),
        ({"outputs": [("text_output", "INT32")]}, {}, "text_output is INT32, but text needs BYTES"),
        ({"gauge": "other"}, {"busy_metric": "running"}, "has no gauge running"),
        ({"busy": ["NaN"]}, {"busy_metric": "running"}, "tells nan requests at work"),
        ({"busy": ["+Inf"]}, {"busy_metric": "running"}, "tells inf requests at work"),
    ],
)
async def test_a_start_that_cannot_succeed_says_what_to_change(
    replay: Replay, changes: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    """Each shortfall is a sentence that names the thing."""
    for name, value in changes.items():
        setattr(replay, name, value)
    if "busy_metric" in settings:
        settings = {**settings, "metrics_url": replay.metrics_url}

    message = await shortfalls_of(engine_of(replay, **settings))

    assert words in message


async def test_an_input_that_must_be_filled_and_is_not_fails_the_start(replay: Replay) -> None:
    """Or else every request would fail."""
    replay.inputs = (*replay.inputs, ("image", "BYTES", (1,), False))

    message = await shortfalls_of(engine_of(replay))

    assert message.startswith("not every request fills the model's input image: set optional: true")


async def test_a_model_without_a_seed_serves_if_the_operator_says_so(replay: Replay) -> None:
    """Then no seed is sent."""
    replay.inputs = [entry for entry in replay.inputs if entry[0] != "seed"]
    engine = engine_of(replay, ignore_seed=True)
    await engine.start()

    await events_of(engine)

    assert "seed" not in {entry.name for entry in replay.requests[0].inputs}
    await engine.stop()


async def test_an_address_where_nobody_listens_fails_at_once(replay: Replay) -> None:
    """And something that is no Triton server is named too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        replay.address = f"127.0.0.1:{listener.getsockname()[1]}"

    message = await shortfalls_of(engine_of(replay))

    assert message == f"{replay.address} does not accept connections"


async def test_tls_is_spoken_where_it_is_configured(replay: Replay) -> None:
    """A server without it then does not answer, instead of being spoken to in the clear."""
    target = Target(address=replay.address, model="m", tls=True)
    engine = TritonEngine(TritonConfig(target=target, model_id="x", slots=1, ctx_max=1))

    assert await shortfalls_of(engine) == f"{replay.address} does not accept connections"


async def test_a_wrong_key_is_named(replay: Replay) -> None:
    """The right one travels in the metadata that was configured."""
    replay.api_key = "right"
    engine = engine_of(replay)
    await engine.start()
    assert await engine.healthy()
    await engine.stop()

    wrong = engine_of(replay)
    replay.api_key = "changed"

    assert await shortfalls_of(wrong) == f"{replay.address} refuses the API key"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slots": 0}, "slots"),
        ({"profile": "onnx"}, "onnx"),
        ({"deterministic": True}, "slots = 1"),
        ({"metrics_url": "http://x/metrics"}, "busy_metric"),
    ],
)
def test_settings_that_no_server_satisfies_are_refused(
    settings: dict[str, Any], words: str
) -> None:
    """Before anything is asked of a server."""
    target = Target(address="127.0.0.1:9", model="m")

    with pytest.raises(ValueError, match=words):
        TritonConfig(**{"target": target, "model_id": "x", "slots": 2, "ctx_max": 1, **settings})
