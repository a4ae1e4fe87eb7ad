"""The start-up self-test of an engine: a decode, a cancel, its telemetry. ORCH-3049.

An engine that answers its health check may still be unable to generate: a broken template, a kernel
that fails on this GPU, a server of another model. What cannot do these three is not READY. The same
test is the probe of an open circuit.
"""

import asyncio
import contextlib

from pool_managerd.engines.port import (
    CancelUnconfirmedError,
    Engine,
    EngineInfo,
    Failed,
    Finished,
    GenerationRequest,
    Piece,
    SamplingParams,
)

PROMPT = "Hello"
DECODE_TOKENS = 2
CANCEL_TOKENS = 256
_DECODE_ID, _CANCEL_ID = "self-test-decode", "self-test-cancel"


async def self_test(
    engine: Engine, info: EngineInfo, timeout_ms: int, cancel_confirm_ms: int
) -> str:
    """Tests a started engine without attempts; returns what is wrong in one sentence, or "".

    Needs one slot. Takes at most `timeout_ms`, the closing of a generation, and `cancel_confirm_ms`
    for each of the two that the test before may have left; never raises but for a broken adapter.
    """
    problem = _telemetry_problem(info) or await _left_behind(engine, cancel_confirm_ms)
    if problem:
        return problem
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await _decode(engine) or await _cancel(engine, info, cancel_confirm_ms)
    except TimeoutError:
        return f"no answer to a prompt of one word within {timeout_ms} ms"


def _telemetry_problem(info: EngineInfo) -> str:
    missing = [
        name
        for name in ("engine", "engine_version", "model_id", "model_digest")
        if not getattr(info, name)
    ]
    missing += [name for name in ("slots_total", "ctx_max") if getattr(info, name) < 1]
    return f"the engine does not tell its {', '.join(missing)}" if missing else ""


async def _left_behind(engine: Engine, confirm_ms: int) -> str:
    """Gives back what a test took that was given up: its slot, and its name."""
    try:
        for request_id in (_DECODE_ID, _CANCEL_ID):
            await engine.confirm_idle(request_id, confirm_ms)
    except CancelUnconfirmedError as error:
        return f"a generation of the test before was not stopped: {error}"
    return ""


async def _decode(engine: Engine) -> str:
    answered = False
    async with contextlib.aclosing(engine.generate(_request(_DECODE_ID, DECODE_TOKENS))) as events:
        async for event in events:
            match event:
                case Piece():
                    answered = True
                case Failed(failure=failure, message=message):
                    return f"generating {DECODE_TOKENS} tokens failed: {failure.value}: {message}"
                case Finished(usage=usage):
                    if usage.tokens_out == 0 and answered:
                        return "the engine counts 0 tokens for a generation that had text"
                    return ""
    return "a generation ended without an end"


async def _cancel(engine: Engine, info: EngineInfo, confirm_ms: int) -> str:
    tokens = min(CANCEL_TOKENS, max(1, info.ctx_max // 2))
    async with contextlib.aclosing(engine.generate(_request(_CANCEL_ID, tokens))) as events:
        async for event in events:
            if isinstance(event, Failed):
                return f"a generation to cancel failed: {event.failure.value}: {event.message}"
            break
    try:
        await engine.confirm_idle(_CANCEL_ID, confirm_ms)
    except CancelUnconfirmedError as error:
        return f"a cancelled generation was not stopped: {error}"
    return ""


def _request(request_id: str, tokens: int) -> GenerationRequest:
    sampling = SamplingParams(seed=1, temperature=0.0, max_tokens=tokens)
    return GenerationRequest(request_id=request_id, prompt=PROMPT, sampling=sampling)
