# SPDX-License-Identifier: Apache-2.0
"""One channel to one server: metadata, timeouts and retries of every call."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from opentelemetry.context import Context

from llamaorch.orchestrator.v1 import (
    artifact_service_pb2_grpc,
    catalog_service_pb2_grpc,
    config_service_pb2_grpc,
    orchestrator_service_pb2_grpc,
    policy_service_pb2_grpc,
    pool_admin_service_pb2_grpc,
    session_service_pb2_grpc,
)
from llamaorch.orchestrator.v1.pool_admin_service_pb2 import WatchPoolsRequest
from llamaorch_client.channel import open_channel
from llamaorch_client.errors import LlamaOrchError, check_size, from_rpc_error
from llamaorch_client.metadata import (
    CORRELATION_ID_KEY,
    call_metadata,
    checked_correlation_id,
    first_value,
)
from llamaorch_client.options import ClientOptions
from llamaorch_client.retry import RetryRow

if TYPE_CHECKING:
    from llamaorch.orchestrator.v1.orchestrator_service_pb2 import (
        ExchangeRequest,
        ExchangeResponse,
        StreamTokensRequest,
        StreamTokensResponse,
    )
    from llamaorch.orchestrator.v1.pool_admin_service_pb2 import WatchPoolsResponse

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class Answer(Generic[MessageT]):
    """A response, with the correlation id that the server returned."""

    message: MessageT
    correlation_id: str


class Transport:
    """Owns the channel. Must be made inside a running event loop, and be closed there.

    Raises ValueError for a target that is no address, and where the token would pass in the clear.
    """

    def __init__(self, target: str, options: ClientOptions) -> None:
        self._channel = open_channel(target, options)
        self._closed = False
        self.target = target
        self.options = options
        self.jobs = orchestrator_service_pb2_grpc.OrchestratorServiceStub(self._channel)
        self.pools = pool_admin_service_pb2_grpc.PoolAdminServiceStub(self._channel)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(self._channel)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(self._channel)
        self.catalog = catalog_service_pb2_grpc.CatalogServiceStub(self._channel)
        self.policy = policy_service_pb2_grpc.PolicyServiceStub(self._channel)
        self.config = config_service_pb2_grpc.ConfigServiceStub(self._channel)
        self.health = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        """Closes the channel; calls under way end with `RuntimeError`."""
        self._closed = True
        await self._channel.close()

    @property
    def closed(self) -> bool:
        """True once it was closed."""
        return self._closed

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it a channel that is closed is told as such.

        gRPC makes a cancellation of it, which would end a task that nobody has cancelled, silently.

        Raises:
            RuntimeError: the client was closed, before or meanwhile.
        """
        if self._closed:
            raise RuntimeError("the client is closed")
        try:
            yield
        except (asyncio.CancelledError, aio.UsageError, aio.AioRpcError) as error:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise RuntimeError("the client was closed during the call") from error

    async def unary(
        self,
        method: "aio.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        *,
        correlation_id: str | None = None,
        context: Context | None = None,
    ) -> Answer[ResponseT]:
        """Makes a call, and makes it again while that is safe and within the bounds.

        Every unary call of this client may be repeated: reads and Cancel are idempotent, Enqueue
        carries a request_id.

        Raises:
            LlamaOrchError: the last attempt's error; `attempts` says how many were made.
            RuntimeError: the client was closed.
        """
        sent_id = checked_correlation_id(correlation_id)
        check_size(request.ByteSize())
        row = RetryRow(self.options.retry, self.options.timing)
        while True:
            try:
                return await self._attempt(method, request, sent_id, context)
            except LlamaOrchError as error:
                delay_ms = row.next_delay_ms(error)
                error.attempts = row.failures
                if delay_ms is None:
                    raise
            await self.options.timing.sleep_ms(delay_ms)

    async def once(
        self,
        method: "aio.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        *,
        correlation_id: str | None = None,
    ) -> Answer[ResponseT]:
        """Makes a call that must not be repeated and may take as long as it takes.

        Raises:
            LlamaOrchError: see `unary`.
        """
        return await self._attempt(
            method, request, checked_correlation_id(correlation_id), None, timed=False
        )

    def open_stream(
        self, request: "StreamTokensRequest", correlation_id: str, context: Context | None
    ) -> "aio.UnaryStreamCall[StreamTokensRequest, StreamTokensResponse]":
        """Begins a StreamTokens call; the caller cancels it."""
        metadata = call_metadata(correlation_id, self.options.token, context)
        return self.jobs.StreamTokens(request, metadata=metadata)

    def open_exchange(
        self, correlation_id: str
    ) -> "aio.StreamStreamCall[ExchangeRequest, ExchangeResponse]":
        """Begins an Exchange call; the caller cancels it."""
        return self.jobs.Exchange(metadata=call_metadata(correlation_id, self.options.token, None))

    def open_pools(
        self, correlation_id: str
    ) -> "aio.UnaryStreamCall[WatchPoolsRequest, WatchPoolsResponse]":
        """Begins a WatchPools call; the caller cancels it."""
        metadata = call_metadata(correlation_id, self.options.token, None)
        return self.pools.WatchPools(WatchPoolsRequest(), metadata=metadata)

    async def _attempt(
        self,
        method: "aio.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        sent_id: str,
        context: Context | None,
        *,
        timed: bool = True,
    ) -> Answer[ResponseT]:
        metadata = call_metadata(sent_id, self.options.token, context)
        timeout_s = self.options.rpc_timeout_ms / 1000 if timed else None
        try:
            with self.in_use():
                call = method(request, timeout=timeout_s, metadata=metadata)
                message = await call
                returned = first_value(list(await call.initial_metadata()), CORRELATION_ID_KEY)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, sent_id, self.target) from error
        return Answer(message, returned or sent_id)
