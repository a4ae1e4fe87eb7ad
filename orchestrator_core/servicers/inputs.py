"""FetchInput: hosts fetch inputs that lie in artifacts, which may be longer than a message."""

import asyncio
from functools import partial

import grpc

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as pb
from orchestrator_core.artifacts import refusals
from orchestrator_core.artifacts.counts import HOST
from orchestrator_core.artifacts.keeper import Artifacts
from orchestrator_core.artifacts.prompts import Unfit, read_prompt
from orchestrator_core.auth.caller import caller
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.pool_registry import SERVICE

CHUNK_BYTES = 256 << 10
# Inputs that are in memory at a time; hosts wait for their turn.
FETCHES_MAX = 2


class InputServicer:
    """Sends the input of a live attempt to its host."""

    def __init__(self, runtime: Runtime, artifacts: Artifacts) -> None:
        self._runtime = runtime
        self._artifacts = artifacts
        self._turns = asyncio.Semaphore(FETCHES_MAX)
        self._idle_s = artifacts.limits.idle_timeout_ms / 1000
        self._transfer_s = artifacts.limits.transfer_timeout_ms / 1000

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods of PoolRegistryService that concern inputs."""
        method = rpc.server_stream(self.fetch_input, pb.FetchInputRequest)
        return grpc.method_handlers_generic_handler(SERVICE, {"FetchInput": method})

    async def fetch_input(self, request: pb.FetchInputRequest, context: rpc.Context) -> None:
        """Sends an input in pieces; ends well only when it is what the client put."""
        await self._runtime.sure()
        artifact_id = self._artifact_of(request)
        async with self._turns:
            record = self._artifacts.index.get(artifact_id)
            if record is None:
                raise RefusalError(refusals.unknown(artifact_id))
            use = partial(_encoded, record.media_type)
            encoded = await self._artifacts.content(record, use)
            if isinstance(encoded, Unfit):
                raise RefusalError(refusals.damaged(artifact_id, encoded.must))
            await self._send(context, encoded)

    async def _send(self, context: rpc.Context, encoded: bytes) -> None:
        """Sends all pieces. A host that reads them slowly must not keep its turn from others."""
        try:
            async with asyncio.timeout(self._transfer_s):
                for at in range(0, len(encoded), CHUNK_BYTES):
                    size_bytes = 0 if at else len(encoded)
                    chunk = encoded[at : at + CHUNK_BYTES]
                    piece = pb.FetchInputResponse(chunk=chunk, size_bytes=size_bytes)
                    await self._write(context, piece)
                    self._artifacts.counts.moved(HOST, len(chunk))
        except TimeoutError:
            text = f"the host took longer than {self._transfer_s:g} s to read its input"
            text += " (artifacts.transfer_timeout_ms)"
            raise RefusalError(refusals.too_late(text)) from None

    def _artifact_of(self, request: pb.FetchInputRequest) -> str:
        """The artifact of an attempt that runs. Raises `RefusalError` NOT_FOUND."""
        job = self._runtime.core.jobs.get(request.job_id)
        attempt = None if job is None or not job.live else job.attempt
        if job is None or attempt is None or attempt.number != request.attempt:
            text = "no such attempt runs: its job may have ended, or be on its way to another pool"
            raise RefusalError(Refusal(Reason.NOT_FOUND, text, resource=request.job_id))
        link = self._runtime.hosts.links.get(attempt.host_id)
        if link is None:
            text = "the attempt's host is not connected"
            raise RefusalError(Refusal(Reason.POOL_UNAVAILABLE, text, refusals.RETRY_MS))
        if link.owner != caller().name:
            text = "the attempt runs on another host than this token's"
            raise RefusalError(Refusal(Reason.PERMISSION_DENIED, text))
        if not job.spec.input_artifact:
            text = "the input of this job came with its StartAttempt"
            raise RefusalError(Refusal(Reason.NOT_FOUND, text, resource=request.job_id))
        return job.spec.input_artifact

    async def _write(self, context: rpc.Context, message: pb.FetchInputResponse) -> None:
        try:
            async with asyncio.timeout(self._idle_s):
                await context.write(message.SerializeToString())
        except TimeoutError:
            raise RefusalError(refusals.too_late("the host does not read its input")) from None


def _encoded(media_type: str, content: bytes) -> bytes | Unfit:
    """The input as the message that a job would have brought it in."""
    prompt = read_prompt(media_type, content)
    if isinstance(prompt, Unfit):
        return prompt
    if isinstance(prompt, str):
        return job_pb2.JobInput(text=prompt).SerializeToString()
    whole = job_pb2.JobInput()
    for message in prompt.messages:
        whole.chat.messages.add(role=message.role, content=message.content)
    return whole.SerializeToString()
