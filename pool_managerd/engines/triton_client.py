"""A client of Triton's gRPC inference protocol: what a server says about itself, and streams.

One stream carries one generation, so cancelling the call cancels that generation and no other. A
backend may take its time to notice; see `triton.TritonEngine.confirm_idle`.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc import aio

from pool_managerd.engines.port import EngineError
from pool_managerd.engines.triton_binding import ModelFacts
from pool_managerd.engines.triton_inference_service_pb2 import (
    ModelConfigRequest,
    ModelInferRequest,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelStreamInferResponse,
    RepositoryIndexRequest,
    RepositoryModelLoadRequest,
    ServerLiveRequest,
    ServerMetadataRequest,
)
from pool_managerd.engines.triton_inference_service_pb2_grpc import GRPCInferenceServiceStub
from pool_managerd.engines.triton_tensors import Tensor

if TYPE_CHECKING:
    from pool_managerd.engines.triton_inference_service_pb2_grpc import (
        GRPCInferenceServiceAsyncStub,
    )

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_ANSWER_TIMEOUT_S, _READY_TIMEOUT_S = 10.0, 30.0
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # A server that restarts is found again within a second, and no other channel's failures count.
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
# Asks Triton to end a failed stream with the error's own status, where it knows how.
_STATUS_WANTED = ("triton_grpc_error", "true")


class TritonApiError(EngineError):
    """A call failed. `code` is the gRPC status; the message is the server's own."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


class StreamBrokenError(EngineError):
    """A stream was cut from this side, because the client was closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model on a Triton server.

    `address` is `host:port` of its gRPC endpoint. `api_key` travels in the metadata `api_key_name`,
    unless empty. `silence_timeout_ms` is the longest wait until a request is written, and for each
    response of its stream.
    """

    address: str
    model: str
    model_version: str = ""
    tls: bool = False
    api_key: str = ""
    api_key_name: str = ""
    silence_timeout_ms: int = 300_000


class TritonClient:
    """One channel to one Triton server, for one of its models."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._channel: aio.Channel | None = None
        self._stub: GRPCInferenceServiceAsyncStub | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        if target.api_key:
            self._metadata = ((target.api_key_name, target.api_key),)

    def open(self) -> None:
        """Prepares the channel. Needs a running event loop; `close` ends it."""
        address = self._target.address
        if self._target.tls:
            credentials = grpc.ssl_channel_credentials()
            self._channel = aio.secure_channel(address, credentials, options=_OPTIONS)
        else:
            self._channel = aio.insecure_channel(address, options=_OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the channel; open streams raise StreamBrokenError. Idempotent."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    async def server_version(self) -> str:
        """Returns the version of a server that answers.

        Raises:
            TritonApiError: when it does not answer.
        """
        stub = self._connected()
        await self._ask(stub.ServerLive, ServerLiveRequest())
        metadata = await self._ask(stub.ServerMetadata, ServerMetadataRequest())
        return metadata.version

    async def load(self, timeout_ms: int) -> None:
        """Loads the model, or loads it anew where its files have changed.

        Raises:
            TritonApiError: when it cannot be loaded.
        """
        request = RepositoryModelLoadRequest(model_name=self._target.model)
        await self._ask(self._connected().RepositoryModelLoad, request, timeout_ms / 1000)

    async def ready(self) -> bool:
        """Tells whether the model serves; never raises."""
        request = ModelReadyRequest(name=self._target.model, version=self._target.model_version)
        try:
            answer = await self._ask(self._connected().ModelReady, request, _READY_TIMEOUT_S)
        except TritonApiError:
            return False
        return answer.ready

    async def state(self) -> tuple[str, str]:
        """Returns the model's state in the repository, and why; ("", "") when it is not there.

        Raises:
            TritonApiError: when the server does not answer.
        """
        index = await self._ask(self._connected().RepositoryIndex, RepositoryIndexRequest())
        version = self._target.model_version
        entries = [
            (entry.state, entry.reason)
            for entry in index.models
            if entry.name == self._target.model and version in {"", entry.version}
        ]
        return max(entries, default=("", ""), key=lambda entry: entry[0] == "LOADING")

    async def facts(self) -> ModelFacts:
        """Returns what the server says about the model.

        Raises:
            TritonApiError: when it does not answer, or does not serve the model.
        """
        stub, name, version = self._connected(), self._target.model, self._target.model_version
        metadata = await self._ask(
            stub.ModelMetadata, ModelMetadataRequest(name=name, version=version)
        )
        answer = await self._ask(stub.ModelConfig, ModelConfigRequest(name=name, version=version))
        optional = {entry.name for entry in answer.config.input if entry.optional}
        return ModelFacts(
            inputs=tuple(_tensor(entry, optional) for entry in metadata.inputs),
            outputs=tuple(_tensor(entry, optional) for entry in metadata.outputs),
            decoupled=answer.config.model_transaction_policy.decoupled,
            versions=tuple(metadata.versions),
            backend=answer.config.backend or answer.config.platform,
        )

    async def infer(
        self, message: ModelInferRequest, traceparent: str
    ) -> AsyncGenerator[ModelStreamInferResponse, None]:
        """Streams the responses of one request; closing the generator cancels it.

        Raises:
            TritonApiError: when the stream ends with another status than OK.
            StreamBrokenError: when the client was closed.
            TimeoutError: when the server was silent for too long.
        """
        message.model_name = self._target.model
        message.model_version = self._target.model_version
        silence_s = self._target.silence_timeout_ms / 1000
        trace = (("traceparent", traceparent),) if traceparent else ()
        call = self._connected().ModelStreamInfer(
            metadata=(*self._metadata, _STATUS_WANTED, *trace)
        )
        try:
            # A server that does not read keeps a writer waiting as one that does not answer.
            async with asyncio.timeout(silence_s):
                await call.write(message)
                await call.done_writing()
            while True:
                async with asyncio.timeout(silence_s):
                    response = await call.read()
                if not isinstance(response, ModelStreamInferResponse):
                    return
                yield response
        except aio.AioRpcError as error:
            raise _api_error(error) from error
        except asyncio.InvalidStateError:
            # The call ended before it was written to.
            raise TritonApiError(await call.details() or "no answer", await call.code()) from None
        except asyncio.CancelledError:
            # grpc.aio raises it in whoever reads a call that the channel's end has cancelled.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise StreamBrokenError("the connection was closed") from None
        finally:
            call.cancel()

    def _connected(self) -> "GRPCInferenceServiceAsyncStub":
        if self._stub is None:
            raise TritonApiError("not connected", grpc.StatusCode.UNAVAILABLE)
        return self._stub

    async def _ask(
        self,
        method: "aio.UnaryUnaryMultiCallable[Question, Answer]",
        question: Question,
        timeout_s: float = _ANSWER_TIMEOUT_S,
    ) -> Answer:
        """Returns the answer of a short call.

        Raises:
            TritonApiError: when there is none in time, or its status is not OK.
        """
        try:
            return await method(question, timeout=timeout_s, metadata=self._metadata)
        except aio.AioRpcError as error:
            raise _api_error(error) from error


def _tensor(entry: ModelMetadataResponse.TensorMetadata, optional: set[str]) -> Tensor:
    return Tensor(entry.name, entry.datatype, len(entry.shape), entry.name in optional)


def _api_error(error: aio.AioRpcError) -> TritonApiError:
    return TritonApiError(error.details() or error.code().name, error.code())
