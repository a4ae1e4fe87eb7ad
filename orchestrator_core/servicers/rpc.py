"""What every RPC has in common: decoding, correlation ids, and errors by the one table.

Handlers get the message or, when it cannot be decoded, are not called at all: the caller is told
INVALID_PARAMS. A `RefusalError` becomes its status; any other exception is a bug of ours and
becomes INTERNAL with nothing but an id. HME-030.
"""

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from orchestrator_core.auth.caller import caller
from orchestrator_core.auth.caller import identify as _identify
from orchestrator_core.auth.tokens import Identity
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.servicers.ids import Ids
from orchestrator_core.wire.errors import abort

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Usual = TypeVar("Usual")
Served = TypeVar("Served")
# What limits the time for which a stream may stay open; see `identify`.
Bounds: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]

CORRELATION_KEY = "x-correlation-id"
_FIT_ID = re.compile(r"[\x21-\x7e]{1,128}")

# Each call is answered in a task of its own.
_correlation_id: ContextVar[str] = ContextVar("orchestratord_correlation_id", default="")
_metadata: ContextVar[Metadata] = ContextVar("orchestratord_metadata", default=())
_bounds: ContextVar[Bounds | None] = ContextVar("orchestratord_bounds", default=None)
_ids = Ids()

_log = structlog.get_logger("orchestratord")


class Undecodable:
    """Stands for a request whose bytes are not the message they should be."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def unary(
    handler: Callable[[Request, Context], Awaitable[Response]], request: type[Request]
) -> "grpc.RpcMethodHandler[Any, Any]":
    """One request, one response."""

    async def call(message: Request | Undecodable, context: Context) -> Response:
        await _begin(context)
        try:
            return await handler(_decoded(message), context)
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a status
            await _fail(context, error)

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=_decoder(request), response_serializer=_encode
    )


def server_stream(
    handler: Callable[[Request, Context], Awaitable[None]], request: type[Request]
) -> "grpc.RpcMethodHandler[Any, Any]":
    """One request; the handler writes responses that are encoded already to the context.

    An asynchronous generator would cost a quarter more for every message.
    """

    async def call(message: Request | Undecodable, context: Context) -> None:
        await _begin(context)
        try:
            await _bounded(handler(_decoded(message), context))
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a status
            await _fail(context, error)

    return grpc.unary_stream_rpc_method_handler(
        call, request_deserializer=_decoder(request), response_serializer=_as_is
    )


def client_stream(
    handler: Callable[[Context], Awaitable[Response]], request: type[Request]
) -> "grpc.RpcMethodHandler[Any, Any]":
    """A stream of requests, one response; the handler reads the context itself."""

    async def call(_: object, context: Context) -> Response:
        await _begin(context)
        try:
            return await _bounded(handler(context))
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a status
            await _fail(context, error)

    return grpc.stream_unary_rpc_method_handler(
        call, request_deserializer=_decoder(request), response_serializer=_encode
    )


def bidi(
    handler: Callable[[Context], Awaitable[None]],
    request: type[Request],
    *,
    encoded: bool = False,
    usual: Callable[[bytes], object | None] = lambda _: None,
) -> "grpc.RpcMethodHandler[Any, Any]":
    """A stream in both directions; the handler reads and writes the context itself.

    With `encoded` it writes bytes instead of messages. `usual` reads requests that are most of all,
    without a message object; None from it leaves one to protobuf.
    """

    async def call(_: object, context: Context) -> None:
        await _begin(context)
        try:
            await _bounded(handler(context))
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a status
            await _fail(context, error)

    return grpc.stream_stream_rpc_method_handler(
        call,
        request_deserializer=_decoder(request, usual),
        response_serializer=_as_is if encoded else _encode,
    )


def correlation_id() -> str:
    """What the caller of this task's call was told as its correlation id; empty outside of one."""
    return _correlation_id.get()


def metadata() -> Metadata:
    """What the caller of this task's call sent along; empty outside of one. gRPC copies it anew."""
    return _metadata.get()


def identity() -> str:
    """Whose call this task answers: the name of its token, if tokens are asked for. AUTH-1007."""
    return caller().name


def identify(who: Identity, bounds: Bounds) -> None:
    """Says whose call this task answers, from here on and in its log lines. AUTH-1008.

    A stream is served within `bounds()`, which may end it with a `RefusalError`.
    """
    _identify(who)
    _bounds.set(bounds)
    structlog.contextvars.bind_contextvars(caller=who.name, token_fingerprint=who.fingerprint)


async def read(
    context: Context, request: type[Request], usual: type[Usual] | None = None
) -> Request | Usual | None:
    """Reads the next message of a stream; None at its end. Raises `RefusalError` for garbage.

    `usual` is what the `usual` of its method makes of some.
    """
    message = await context.read()
    if message is grpc.aio.EOF:
        return None
    decoded: Request | Usual = _decoded(message)
    return decoded


def refusal_of(error: Exception) -> Refusal:
    """What a caller is told of an error; one that is a bug of ours is logged."""
    if isinstance(error, RefusalError):
        return error.refusal
    trace_id = structlog.contextvars.get_contextvars().get("correlation_id", "")
    _log.error("internal_error", exc_info=error, human="A bug: please report it with this entry.")
    return Refusal(Reason.INTERNAL, "", metadata={"trace_id": str(trace_id)})


async def _bounded(serving: Awaitable[Served]) -> Served:
    bounds = _bounds.get()
    if bounds is None:
        return await serving
    async with bounds():
        return await serving


async def _begin(context: Context) -> None:
    metadata = tuple(context.invocation_metadata() or ())
    chosen = _chosen(metadata)
    _correlation_id.set(chosen)
    _metadata.set(metadata)
    structlog.contextvars.bind_contextvars(correlation_id=chosen)
    await context.send_initial_metadata(((CORRELATION_KEY, chosen),))


def _chosen(metadata: Metadata) -> str:
    """The caller's id, or a new one where it gave none that is fit to be logged."""
    for key, value in metadata:
        if key == CORRELATION_KEY and isinstance(value, str) and _FIT_ID.fullmatch(value):
            return value
    return _ids.new_correlation_id()


async def _fail(context: Context, error: Exception) -> NoReturn:
    # An operation fails on a call that its client has left, and once the server has stopped; grpc
    # knows, and lets it pass. The class of the latter is private. A wrong use of a call is a bug.
    if isinstance(error, grpc.aio.BaseError) and not isinstance(error, grpc.aio.UsageError):
        raise error
    await abort(context, refusal_of(error))


def _decoder(
    request: type[Request], usual: Callable[[bytes], object | None] = lambda _: None
) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        if (read := usual(data)) is not None:
            return read
        try:
            return request.FromString(data)
        except DecodeError as error:
            return Undecodable(str(error))

    return decode


def _decoded(message: Request | Undecodable) -> Request:
    if isinstance(message, Undecodable):
        what = FieldViolation("request", f"cannot be decoded: {message.reason}")
        text = "the request is not the message that this call takes"
        raise RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=(what,)))
    return message


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _as_is(data: bytes) -> bytes:
    return data
