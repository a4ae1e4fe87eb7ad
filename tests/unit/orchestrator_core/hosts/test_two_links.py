"""Two streams of one host: what the earlier one still carried when the later one registered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2
from llamaorch.pool.v1 import pool_registry_service_pb2 as pb
from orchestrator_core.clock import SystemClock
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.machine import Core
from orchestrator_core.hosts.link import LinkTerms
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers.pool_registry import PoolRegistryServicer
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.wire.jobs import SpecContext, parse_spec
from tests.integration.orchestrator.scripted_host import snapshot
from tests.unit.orchestrator_core.around_runtime import Silent
from tests.unit.orchestrator_core.relay.logs import digest, frames

WAIT_S = 20.0


class Stream:
    """A Dispatch stream in memory: what the host sends, and what it is told."""

    def __init__(self) -> None:
        self._sent: asyncio.Queue[pb.DispatchRequest] = asyncio.Queue()
        self._told: asyncio.Queue[pb.DispatchResponse] = asyncio.Queue()

    async def read(self) -> pb.DispatchRequest:
        """The orchestrator reads."""
        return await self._sent.get()

    async def write(self, message: pb.DispatchResponse) -> None:
        """The orchestrator writes."""
        self._told.put_nowait(message)

    def register(self, boot_id: str) -> None:
        """The host registers its pool, whose engine is that of this run."""
        pool = snapshot("pool-a", replica_id=f"pool-a-{boot_id}")
        register = dispatch_pb2.Register(host_id="host-1", boot_id=boot_id, pools=[pool])
        self._sent.put_nowait(pb.DispatchRequest(register=register))

    def tell(self, start: dispatch_pb2.StartAttempt, text: str) -> None:
        """The host tells the beginning of an attempt and its first text."""
        (made,) = frames([[text]], start.attempt)
        tokens = dispatch_pb2.TokenFrames(
            handles=[start.handle],
            first_indexes=[made.first_index],
            piece_counts=[made.pieces],
            text_offsets=[made.text_offset],
            text_bytes=[made.text_bytes],
            chunks=[made.chunk],
        )
        started = [dispatch_pb2.AttemptStarted(handle=start.handle)]
        frame = dispatch_pb2.HostFrame(frame_seq=1, started=started, tokens=tokens)
        self._sent.put_nowait(pb.DispatchRequest(frame=frame))

    async def start(self) -> dispatch_pb2.StartAttempt:
        """The next attempt that the host is told to start."""
        while True:
            command = await asyncio.wait_for(self._told.get(), WAIT_S)
            if command.WhichOneof("command") == "start":
                return command.start


class World:
    """An orchestrator without sockets; `downs` are the losses of hosts that were told."""

    def __init__(self) -> None:
        self.relay = Relay(RelayLimits())
        self.store = MemoryStore()
        core = Core(CoreConfig())
        self.runtime = Runtime(core, self.store, SystemClock(), self.relay, Hosts(), Silent())
        self.downs: list[str] = []
        telemetry: Any = SimpleNamespace(
            host_down=lambda _, why: self.downs.append(why), host_reported=lambda _: None
        )
        terms = LinkTerms(1, 1_000, 60_000, 1 << 20, "journal")
        self._servicer = PoolRegistryServicer(self.runtime, telemetry, terms)
        self._tasks = [asyncio.create_task(self.runtime.run())]

    def open(self) -> Stream:
        """A host dials."""
        stream: Any = Stream()
        self._tasks.append(asyncio.create_task(self._servicer.dispatch(stream)))
        return stream  # type: ignore[no-any-return]

    async def enqueue(self, job_id: str) -> None:
        """Gives a job; returns once it is accepted."""
        asked = job_pb2.JobSpec(
            job_id=job_id, model_id="tiny", input=job_pb2.JobInput(text="hello")
        )
        parsed: Any = parse_spec(asked, SpecContext("somebody", job_id, 7, 0))
        await self.runtime.enqueue(parsed)

    async def close(self) -> None:
        """Ends everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.runtime.close()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """An orchestrator for one test."""
    made = World()
    await made.store.open()
    try:
        yield made
    finally:
        await made.close()


async def registered(there: World, stream: Stream, boot_id: str) -> None:
    """A host registers; returns once that is so."""
    stream.register(boot_id)
    hosts = there.runtime.hosts
    while "host-1" not in hosts.links or hosts.links["host-1"].boot_id != boot_id:
        await there.runtime.next_step()


async def test_what_an_earlier_run_said_counts_no_more_once_a_later_one_is_there() -> None:
    """LO-304: a job that is generated anew has the text of its new attempt, and no other.

    Both streams have something to read at the same moment, as after a standstill.
    """
    async with world() as there:
        first = there.open()
        await registered(there, first, "boot-1")
        await there.enqueue("job")
        begun = await first.start()
        there.runtime.hosts.links["host-1"].heard_s -= 1_000.0

        second = there.open()
        await asyncio.sleep(0.01)
        second.register("boot-2")
        first.tell(begun, "of the past")
        anew = await second.start()
        second.tell(anew, "as it is")
        while there.relay.log("job").next_offset == 0:
            await there.runtime.next_step()

        assert (begun.attempt, anew.attempt) == (1, 2)
        assert there.relay.log("job").next_offset == len("as it is")
        assert there.relay.log("job").digest() == digest(b"as it is")


async def test_a_host_that_opens_another_stream_is_told_as_gone_once_and_before() -> None:
    """Its log ends with what is so: it is here."""
    async with world() as there:
        first, second = there.open(), there.open()
        await registered(there, first, "boot-1")
        link = there.runtime.hosts.links["host-1"]
        second.register("boot-1")
        await asyncio.wait_for(link.closed.wait(), WAIT_S)
        told_before = list(there.downs)
        for _ in range(8):
            await asyncio.sleep(0)

        assert told_before == there.downs == ["it opened another stream"]
        assert there.runtime.hosts.links["host-1"] is not link
