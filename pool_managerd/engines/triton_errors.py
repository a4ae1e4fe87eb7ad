"""What Triton's errors mean: a text without a status, or a gRPC status with one. No I/O."""

import re

import grpc

from pool_managerd.core.exhaustion import exhausted_by_error
from pool_managerd.engines.failures import OUT_OF_MEMORY
from pool_managerd.engines.port import Failed, Failure, Usage

_MAX_MESSAGE_CHARS = 300
_UNKNOWN = Usage()

# Sources: vLLM ("The decoder prompt (length 5000) is longer than the maximum model length of
# 4096"), TensorRT-LLM ("Prompt length (200) exceeds maximum input length (1)").
_OVERFLOW = re.compile(
    r"(longer than|exceeds?|greater than)\b.{0,40}\b(context|model length|max_model_len|"
    r"(input|sequence) length|max_(input|seq|num_tokens))"
)
_GONE = re.compile(
    r"stub process .*(not healthy|terminated|exited)|unhealthy vllm engine|enginedead|engine core|"
    r"has no available versions|request for unknown model"
)
# grpc.aio's own words for a stream that ended while the request was being written.
_NOT_WRITTEN = "internal error from core"
# Found before a model sees the request, so no replica would take it either.
_REFUSED = re.compile(
    r"^(\[request id: [^\]]*\] )?(expected \d+ inputs but got|inference input |unexpected "
    r"(shape|inference input)|input '?[^ ]+'? (batch|shape))"
)

_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: Failure.INVALID_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: Failure.INVALID_REQUEST,
    grpc.StatusCode.UNAVAILABLE: Failure.ENGINE_DIED,
    grpc.StatusCode.CANCELLED: Failure.ENGINE_DIED,
}
# Statuses that blame the server, but no engine is gone: it is full, or wants another key.
_ALIVE = re.compile(r"maximum queue size|maximum number of requests|protocol is restricted")


def failure_of(text: str, code: grpc.StatusCode | None = None, usage: Usage = _UNKNOWN) -> Failed:
    """Returns the event for an error. What the text says goes before its status.

    Triton gives a Python model's error the status INTERNAL unless the model chose one, so the
    status alone tells little.
    """
    message = " ".join(text.split())[:_MAX_MESSAGE_CHARS]
    return Failed(_kind(message.lower(), code), message or "the engine failed", usage)


def says_gone(text: str) -> bool:
    """Tells whether the server says that the model is over, rather than that a request is."""
    return bool(_GONE.search(text.lower()))


def _kind(message: str, code: grpc.StatusCode | None) -> Failure:
    if _OVERFLOW.search(message):
        return Failure.CONTEXT_OVERFLOW
    if (memory := exhausted_by_error(message)) is not None:
        return OUT_OF_MEMORY[memory]
    if _GONE.search(message) or message == _NOT_WRITTEN:
        return Failure.ENGINE_DIED
    if _ALIVE.search(message):
        return Failure.ENGINE_ERROR
    if _REFUSED.search(message):
        return Failure.INVALID_REQUEST
    return Failure.ENGINE_ERROR if code is None else _BY_CODE.get(code, Failure.ENGINE_ERROR)
