"""A host with a valid token that lies: false digests, wrong attempts, negative counts, floods.

Its own jobs may fail, and say so; nobody else's do, and the orchestrator stays as it is. LO-203,
LO-304, LO-306.
"""

import contextlib
import hashlib
import os
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import events_pb2, job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as pb
from tests.integration.orchestrator.scripted_host import digest, snapshot
from tests.integration.security.messages import Known, encoded
from tests.integration.security.processes import Service, bugs, orchestrator

WAIT_S = 20.0
GROWTH_MIB_MAX = 32
SEARCH = int(os.environ.get("LLAMAORCH_FUZZ", "0"))
UNTIMED: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "database": None}

# Numbers near those of the host's real attempt, so that frames are about it.
FRAME: Known = {
    "frame": (),
    "tokens": (),
    "ended": (),
    "finish_reason": (1, 2),
    "frame_seq": (1, 2, 3),
    "handle": (1, 1, 2),
    "handles": (1, 1, 2),
    "first_indexes": (0, 1),
    "first_index": (0, 1),
    "piece_counts": (1, 2),
    "text_offsets": (0, 5),
    "text_offset": (0, 5),
    "text_bytes": (5, 0),
    "chunks": (
        events_pb2.TokenBatch(
            attempt=1, prefix_digest=digest(b""), pieces=["hello"]
        ).SerializeToString(),
    ),
    "next_index": (1,),
    "text_digest": (digest(b"hello"), 1),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An orchestratord that logs no bug, whatever hosts say."""
    with orchestrator(tmp_path_factory.mktemp("lied-to"), tokens=False) as running:
        yield running
        assert running.alive()
        assert bugs(running.log) == []


class Liar:
    """A host with one pool that sends bytes as they are."""

    def __init__(self, channel: grpc.Channel, number: int) -> None:
        self.host_id, self.model = f"liar-{number}", f"model-{number}"
        self._sent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        dispatch = channel.stream_stream(
            "/llamaorch.pool.v1.PoolRegistryService/Dispatch",
            response_deserializer=pb.DispatchResponse.FromString,
        )
        self._commands = dispatch(iter(self._sent.get, None), timeout=WAIT_S)

    def register(self) -> None:
        """Registers one pool that is ready."""
        pool = snapshot(f"{self.host_id}-pool", host_id=self.host_id, model_id=self.model)
        register = dispatch_pb2.Register(host_id=self.host_id, boot_id="b", pools=[pool])
        self.say(pb.DispatchRequest(register=register).SerializeToString())
        self.await_command("registered")

    def say(self, data: bytes) -> None:
        """Sends a DispatchRequest, or what is none."""
        self._sent.put(data)

    def await_command(self, kind: str) -> None:
        """Waits for a command of a kind."""
        for command in self._commands:
            if command.WhichOneof("command") == kind:
                return
        raise AssertionError(f"the stream ended before {kind}")

    def leave(self) -> tuple[grpc.StatusCode, str]:
        """Says nothing more; how the stream ends."""
        self._sent.put(None)
        with contextlib.suppress(grpc.RpcError):
            for _ in self._commands:
                pass
        return self._commands.code(), self._commands.details()


def lied_to(address: str, number: int, frames: list[bytes]) -> tuple[grpc.StatusCode, str, str]:
    """One host with one running job says all this; how its stream and its job end."""
    with grpc.insecure_channel(address) as channel:
        jobs = jobs_grpc.OrchestratorServiceStub(channel)
        host = Liar(channel, number)
        host.register()
        spec = job_pb2.JobSpec(model_id=host.model, input=job_pb2.JobInput(text="hello"))
        job = jobs.Enqueue(jobs_pb2.EnqueueRequest(spec=spec), timeout=WAIT_S)
        host.await_command("start")
        for frame in frames:
            host.say(frame)
        code, text = host.leave()
        ended = jobs.Cancel(jobs_pb2.CancelRequest(job_id=job.job_id), timeout=WAIT_S).job
        told = jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job.job_id), timeout=WAIT_S).job
    assert ended.state == told.state
    return code, text, job_pb2.JobState.Name(told.state)


NUMBERS = iter(range(10**9))


@settings(max_examples=SEARCH or 30, derandomize=not SEARCH, **UNTIMED)
@given(st.lists(encoded(pb.DispatchRequest, FRAME), min_size=1, max_size=4))
def test_whatever_a_host_says_its_stream_and_its_job_end_as_they_should(
    service: Service, frames: list[bytes]
) -> None:
    """LO-203: never with a bug of ours, and the job in a state that a job can end in."""
    code, text, state = lied_to(service.address, next(NUMBERS), frames)

    assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), text
    ended = ("FINISHED", "FAILED", "CANCELLED", "EXPIRED")
    assert state.removeprefix("JOB_STATE_") in ended


def output(pieces: int, piece: str) -> Iterator[bytes]:
    """Frames with sound output of the first attempt, whatever the send window."""
    text = piece.encode()
    hashed = hashlib.sha256()
    for number in range(pieces):
        chunk = events_pb2.TokenBatch(
            attempt=1,
            first_index=number,
            text_offset=number * len(text),
            prefix_digest=int.from_bytes(hashed.digest()[:8], "big"),
            pieces=[piece],
        )
        hashed.update(text)
        tokens = dispatch_pb2.TokenFrames(
            handles=[1],
            first_indexes=[number],
            piece_counts=[1],
            text_offsets=[number * len(text)],
            text_bytes=[len(text)],
            chunks=[chunk.SerializeToString()],
        )
        frame = dispatch_pb2.HostFrame(frame_seq=number + 1, tokens=tokens)
        yield pb.DispatchRequest(frame=frame).SerializeToString()


def unknown_attempts(frames: int) -> Iterator[bytes]:
    """Frames about attempts that nobody gave this host."""
    handles = range(2, 102)
    for number in range(frames):
        frame = dispatch_pb2.HostFrame(
            frame_seq=number + 1,
            started=[dispatch_pb2.AttemptStarted(handle=handle) for handle in handles],
            refused=[dispatch_pb2.AttemptRefused(handle=handle) for handle in handles],
            ended=[dispatch_pb2.AttemptEnded(handle=handle) for handle in handles],
        )
        yield pb.DispatchRequest(frame=frame).SerializeToString()


@pytest.mark.parametrize(
    "frames", [output(1_500, "x" * 60_000), unknown_attempts(2_000)], ids=["output", "attempts"]
)
def test_a_host_that_floods_its_stream_takes_bounded_memory_and_harms_nobody(
    service: Service, frames: Iterator[bytes]
) -> None:
    """LO-306: 90 MB of output beyond every window; 600,000 words about strange attempts."""
    with grpc.insecure_channel(service.address) as channel, service.growth() as growth:
        jobs = jobs_grpc.OrchestratorServiceStub(channel)
        host = Liar(channel, next(NUMBERS))
        host.register()
        spec = job_pb2.JobSpec(model_id=host.model, input=job_pb2.JobInput(text="hello"))
        job = jobs.Enqueue(jobs_pb2.EnqueueRequest(spec=spec), timeout=WAIT_S)
        host.await_command("start")
        for number, frame in enumerate(frames):
            host.say(frame)
            if number % 100 == 0:
                jobs.GetOverview(jobs_pb2.GetOverviewRequest(), timeout=WAIT_S)
        code, text = host.leave()
        told = jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job.job_id), timeout=WAIT_S).job
        jobs.Cancel(jobs_pb2.CancelRequest(job_id=job.job_id), timeout=WAIT_S)

    assert code is grpc.StatusCode.OK, text
    assert told.job_id == job.job_id

    assert growth.mib <= GROWTH_MIB_MAX
