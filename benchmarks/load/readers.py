"""Clients that give jobs and read them: `python -m benchmarks.load.readers ADDRESS`.

All of the output is checked: every batch must begin where the one before ended and carry the
digest of everything before it, and the outcome must name the length and digest of what came.
"""

import argparse
import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc

from benchmarks.load.control import Fields, obey
from benchmarks.load.hosts import MODEL, PIECE_BYTES, age_s
from llamaorch.orchestrator.v1 import events_pb2, job_pb2, orchestrator_service_pb2_grpc
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb

Stub: TypeAlias = "orchestrator_service_pb2_grpc.OrchestratorServiceAsyncStub"

# One batch in so many is looked at for its age.
SAMPLE_EVERY = 8
OPENING_MAX = 16
ACK_EVERY_S = 0.1
# An Exchange gives each job this much credit, and as much again as it reads.
CREDIT_BYTES = 64 * 1024


def job_spec() -> job_pb2.JobSpec:
    """A short prompt and a long answer."""
    sampling = job_pb2.Sampling(max_tokens=100_000)
    return job_pb2.JobSpec(
        model_id=MODEL, input=job_pb2.JobInput(text="Once upon a time"), sampling=sampling
    )


@dataclass(slots=True)
class Job:
    """What a reader has of one job."""

    offset: int = 0
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    outcome: bool = False

    def digest(self) -> int:
        """Digest of all text so far."""
        return int.from_bytes(self.hash.digest()[:8], "big")


@dataclass(slots=True)
class Readers:
    """Counts over all jobs of this process. `problems` are violations of the contract."""

    tokens: int = 0
    batches: int = 0
    ages_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    started: int = 0

    def batch(self, job: Job, batch: events_pb2.TokenBatch) -> None:
        """Checks and counts one batch."""
        self.batches += 1
        pieces = batch.pieces
        if self.batches % SAMPLE_EVERY == 0:
            self.ages_s.append(age_s(int(pieces[0], 16), time.monotonic()))
        if batch.text_offset != job.offset:
            self.problems.append(f"a batch at {batch.text_offset} after {job.offset} bytes")
        elif batch.prefix_digest != job.digest():
            self.problems.append(f"another digest at {job.offset}")
        job.hash.update("".join(pieces).encode())
        self.started += job.offset == 0
        job.offset = batch.text_offset + len(pieces) * PIECE_BYTES
        self.tokens += len(pieces)

    def event(self, job: Job, event: events_pb2.JobEvent) -> None:
        """Checks an outcome; other events are let pass."""
        if event.HasField("error"):
            self.problems.append(f"error: {event.error.message}")
            job.outcome = True
        elif event.HasField("end"):
            right = (job.offset, job.digest())
            if (event.end.text_bytes, event.end.text_digest) != right:
                self.problems.append(f"end at {event.end.text_bytes}, read {job.offset}")
            if job.outcome:
                self.problems.append("a second outcome")
            job.outcome = True


async def follow(stub: Stub, readers: Readers, job: Job, opening: asyncio.Semaphore) -> None:
    """Gives a job and reads it on a stream of its own."""
    async with opening:
        receipt = await stub.Enqueue(pb.EnqueueRequest(spec=job_spec()))
        call = stub.StreamTokens(pb.StreamTokensRequest(job_id=receipt.job_id))
        # A server sheds calls that come faster than it can take them.
        await call.initial_metadata()
    async for response in call:
        for event in response.events:
            if event.HasField("tokens"):
                readers.batch(job, event.tokens)
            else:
                readers.event(job, event)
    if not job.outcome:
        readers.problems.append("a stream closed without an outcome")


class Exchange:
    """One Exchange stream with many jobs."""

    def __init__(
        self,
        stub: Stub,
        readers: Readers,
        jobs: list[Job],
    ) -> None:
        self._readers = readers
        self._given = dict(enumerate(jobs, start=1))
        self._jobs: dict[int, Job] = {}
        self._acked: dict[int, int] = {}
        self._call = stub.Exchange(self._requests())
        self._over = asyncio.Event()

    async def _requests(self) -> AsyncIterator[pb.ExchangeRequest]:
        for number in self._given:
            enqueue = pb.ExchangeEnqueue(spec=job_spec(), subscribe=True, credit_bytes=CREDIT_BYTES)
            yield pb.ExchangeRequest(correlation_id=number, enqueue=enqueue)
        while not self._over.is_set():
            await asyncio.sleep(ACK_EVERY_S)
            ack = pb.ExchangeAck()
            for handle, job in self._jobs.items():
                if (more := job.offset - self._acked[handle]) > 0:
                    self._acked[handle] = job.offset
                    ack.handles.append(handle)
                    ack.text_offsets.append(job.offset)
                    ack.credit_bytes.append(more)
            if ack.handles:
                yield pb.ExchangeRequest(ack=ack)

    async def run(self) -> None:
        """Reads until all jobs have their outcomes."""
        async for response in self._call:
            for result in response.results:
                if result.HasField("error"):
                    self._readers.problems.append(f"refused: {result.error.message}")
                elif result.HasField("enqueued"):
                    self._jobs[result.handle] = self._given[result.correlation_id]
                    self._acked[result.handle] = 0
            tokens = response.tokens
            for handle, chunk in zip(tokens.handles, tokens.chunks, strict=True):
                # One message used again would never give memory back.
                batch = events_pb2.TokenBatch.FromString(chunk)
                self._readers.batch(self._jobs[handle], batch)
            for event in response.events:
                job = self._jobs[event.handle]
                self._readers.event(job, event.event)
                if job.outcome:
                    del self._jobs[event.handle]
            if not self._jobs and all(job.outcome for job in self._given.values()):
                self._over.set()
                return


class Commands:
    """What a driver can ask of this process."""

    def __init__(self, address: str, connections: int) -> None:
        # Without this, channels to one address share one connection.
        options = (("grpc.use_local_subchannel_pool", 1),)
        channels = [grpc.aio.insecure_channel(address, options) for _ in range(connections)]
        self._stubs = [orchestrator_service_pb2_grpc.OrchestratorServiceStub(it) for it in channels]
        self._readers = Readers()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, fields: Fields) -> Fields:
        """Gives jobs; answers when each has output."""
        self._readers.jobs = jobs = [Job() for _ in range(int(fields["jobs"]))]
        opening = asyncio.Semaphore(OPENING_MAX)
        parts = [jobs[start :: len(self._stubs)] for start in range(len(self._stubs))]
        for stub, part in zip(self._stubs, parts, strict=True):
            if fields["exchange"]:
                work = [Exchange(stub, self._readers, part).run()]
            else:
                work = [follow(stub, self._readers, job, opening) for job in part]
            self._tasks.extend(map(asyncio.create_task, work))
        while self._readers.started < len(jobs):
            await asyncio.sleep(0.05)
            for task in self._tasks:
                if task.done():
                    task.result()
        return {}

    async def count(self, _: Fields) -> Fields:
        """Tokens and batches so far, and ages of tokens since the last call, in ms."""
        readers = self._readers
        ages, readers.ages_s = sorted(readers.ages_s), []
        at = {
            f"p{percent}_ms": ages[len(ages) * percent // 100] * 1000 if ages else 0.0
            for percent in (50, 99)
        }
        return {
            "tokens": readers.tokens,
            "batches": readers.batches,
            "problems": len(readers.problems),
            "first": readers.problems[:1],
            **at,
        }

    async def close(self, _: Fields) -> Fields:
        """Waits for the outcomes of all jobs; hosts were told to end them."""
        await asyncio.gather(*self._tasks)
        self._tasks.clear()
        return await self.count({})


async def main() -> None:
    """Reads until the driver ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=1)
    options = parser.parse_args()
    commands = Commands(options.address, options.connections)
    await obey({"open": commands.open, "count": commands.count, "close": commands.close})


if __name__ == "__main__":
    asyncio.run(main())
