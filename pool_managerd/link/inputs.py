"""Inputs that lie at the orchestrator: too long for a message, or used by many jobs."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as registry_pb2
from llamaorch.pool.v1.pool_registry_service_pb2_grpc import PoolRegistryServiceStub
from pool_managerd.attempts.command import InputError, Prompt
from pool_managerd.auth.credentials import LinkCredentials, Metadata, lost_sentence
from pool_managerd.config.schema import Config
from pool_managerd.core.attempts import AttemptKey
from pool_managerd.link import wire
from pool_managerd.link.streams import STREAM_ERRORS, until_lost
from pool_managerd.telemetry import Telemetry

# An attempt holds its slot meanwhile; a link that was cut is back sooner, or its attempts are lost.
PATIENCE_S = 60.0
"""Longest time in which nothing comes that had not come before; slow links need more in all."""
LONGEST_S = 3_600.0
PAUSE_S = 0.5
_AWAY = "the orchestrator is not reached"
_SLOW = "the orchestrator sends it too slowly, or not at all"
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
# What the orchestrator has against this host; another one may get the input.
_OF_THIS_HOST = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# With another certificate, or TLS on one side alone, it is as if nobody were there.
_REFUSED = _OF_THIS_HOST | {grpc.StatusCode.UNAVAILABLE}


async def refusal(config: Config, timeout_s: float) -> str:
    """Why the orchestrator would not take this host's calls; empty where it would, or is away.

    Asks for the input of no attempt, which takes the role that everything else of a host takes.

    Raises:
        SessionLostError: when a file with the token or a certificate cannot be used.
    """
    own = LinkCredentials()
    metadata = await own.metadata(config)
    async with await own.channel(config, []) as channel:
        call = PoolRegistryServiceStub(channel).FetchInput(
            registry_pb2.FetchInputRequest(), metadata=metadata, timeout=timeout_s
        )
        try:
            await call.read()
        except aio.AioRpcError as error:
            return lost_sentence(error) if error.code() in _REFUSED else ""
    return ""


class Inputs:
    """Fetches inputs over the connection that the link has. Each has at most `bytes_max`."""

    def __init__(self, bytes_max: int, metadata: Callable[[], Awaitable[Metadata]]) -> None:
        self._bytes_max = bytes_max
        self._metadata = metadata
        self._channel: aio.Channel | None = None
        self._connected = asyncio.Event()

    def use(self, channel: aio.Channel | None) -> None:
        """Tells of the connection of the present session; None: there is none."""
        self._channel = channel
        if channel is None:
            self._connected.clear()
        else:
            self._connected.set()

    async def fetch(self, key: AttemptKey) -> Prompt:
        """The prompt of an attempt; over the next connection, where this one breaks.

        Raises:
            InputError: when the orchestrator will not give it, or nothing more of it came for a
                minute, or not all of it within an hour.
        """
        why = _AWAY
        try:
            async with asyncio.timeout(LONGEST_S), asyncio.timeout(PATIENCE_S) as silence:
                farthest = _Farthest(silence)
                while True:
                    # It may be gone again by the time that who waited for it is woken.
                    while (channel := self._channel) is None:
                        await self._connected.wait()
                    why = _SLOW if why is _AWAY else why
                    try:
                        return await until_lost(self._read(channel, key, farthest))
                    except STREAM_ERRORS as error:
                        why = _why(error)
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            raise InputError(why, lasting=False) from None

    async def _read(self, channel: aio.Channel, key: AttemptKey, farthest: "_Farthest") -> Prompt:
        request = registry_pb2.FetchInputRequest(job_id=key.job_id, attempt=key.attempt)
        trace = Telemetry.traceparent()
        # A long wait of the attempt for its input is seen in its trace.
        traced = (("traceparent", trace),) if trace else ()
        metadata = (*await self._metadata(), *traced)
        call = PoolRegistryServiceStub(channel).FetchInput(request, metadata=metadata)
        data, size_bytes = bytearray(), 0
        try:
            async for piece in call:
                size_bytes = size_bytes or piece.size_bytes
                data += piece.chunk
                if max(size_bytes, len(data)) > self._bytes_max:
                    text = f"it has more than {self._bytes_max} bytes (limits.input_bytes_max)"
                    raise InputError(text, lasting=True)
                farthest.came(len(data))
        finally:
            call.cancel()
        if len(data) != size_bytes:
            raise InputError(f"{len(data)} of {size_bytes} bytes came", lasting=False)
        try:
            return wire.prompt_of(job_pb2.JobInput.FromString(bytes(data)))
        except (DecodeError, wire.UnsupportedCommandError) as error:
            raise InputError(f"it cannot be read ({error})", lasting=True) from error


class _Farthest:
    """Puts the end of patience off whenever more has come than ever before."""

    def __init__(self, silence: asyncio.Timeout) -> None:
        self._silence = silence
        self._bytes = 0

    def came(self, size_bytes: int) -> None:
        """So many bytes are there, by this try."""
        if size_bytes > self._bytes:
            self._bytes = size_bytes
            self._silence.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)


def _why(error: BaseException) -> str:
    """What a failed call says. Raises `InputError` where another try here would fail as well."""
    if not isinstance(error, grpc.RpcError):
        return str(error) or type(error).__name__
    code = error.code() if isinstance(error, aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, aio.AioRpcError) else None) or code.name
    if code not in _PASSING:
        raise InputError(details, lasting=code not in _OF_THIS_HOST) from error
    return details
