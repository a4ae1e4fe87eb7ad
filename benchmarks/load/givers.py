"""A client that gives jobs and measures: `python -m benchmarks.load.givers ADDRESS`."""

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from benchmarks.load.control import Fields, obey
from benchmarks.load.readers import job_spec
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc

WARM_UP_CALLS = 200
CONNECTIONS = 4
STREAMS_PER_CONNECTION = 500
# Different errors that are told, each with its count.
KINDS_TOLD = 5


class Results:
    """Seconds that calls took, and those that failed."""

    def __init__(self) -> None:
        self.took_s: list[float] = []
        self.errors: list[str] = []
        self.began_s = time.monotonic()

    async def watch(self, call: Callable[[], Awaitable[Any]], due_s: float) -> None:
        """Makes one call; what it took counts from when it was due."""
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            self.errors.append(f"{error.code().name}: {error.details()}")
        else:
            self.took_s.append(time.monotonic() - due_s)

    def fields(self) -> Fields:
        """The answer to the driver."""
        over_s = time.monotonic() - self.began_s
        took = sorted(self.took_s) or [0.0]
        return {
            "calls": len(self.took_s),
            "calls_per_s": len(self.took_s) / over_s,
            "p50_ms": took[len(took) // 2] * 1000,
            "p99_ms": took[len(took) * 99 // 100] * 1000,
            "errors": len(self.errors),
            "kinds": Counter(self.errors).most_common(KINDS_TOLD),
            "prompt_bytes": job_spec().input.ByteSize(),
        }


class Giver:
    """What a driver can ask of this process."""

    def __init__(self, address: str) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        channels = [grpc.aio.insecure_channel(address, options) for _ in range(CONNECTIONS)]
        self._stubs = [orchestrator_service_pb2_grpc.OrchestratorServiceStub(it) for it in channels]
        self._turn = 0
        self._followed = 0
        self._kept: list[Any] = []

    async def _enqueue(self) -> pb.EnqueueResponse:
        self._turn += 1
        stub = self._stubs[self._turn % CONNECTIONS]
        answer: pb.EnqueueResponse = await stub.Enqueue(pb.EnqueueRequest(spec=job_spec()))
        return answer

    async def warm_up(self, _: Fields) -> Fields:
        """Fills the pool, and the server's caches."""
        return await self.fast({"calls": WARM_UP_CALLS, "in_flight": 8})

    async def at_rate(self, fields: Fields) -> Fields:
        """Calls on schedule, answered or not."""
        results, rate = Results(), float(fields["rate"])
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * float(fields["seconds"]))):
                due_s = results.began_s + number / rate
                if (wait_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                tasks.create_task(results.watch(self._enqueue, due_s))
        return results.fields()

    async def fast(self, fields: Fields) -> Fields:
        """Keeps calls under way until so many were made."""
        results, left = Results(), iter(range(int(fields["calls"])))

        async def work() -> None:
            for _ in left:
                await results.watch(self._enqueue, time.monotonic())

        await asyncio.gather(*(work() for _ in range(int(fields["in_flight"]))))
        return results.fields()

    async def fast_exchange(self, fields: Fields) -> Fields:
        """The same on one Exchange stream."""
        results, calls = Results(), int(fields["calls"])
        room = asyncio.Semaphore(int(fields["in_flight"]))
        sent_s: dict[int, float] = {}

        async def requests() -> AsyncIterator[pb.ExchangeRequest]:
            for number in range(1, calls + 1):
                await room.acquire()
                sent_s[number] = time.monotonic()
                enqueue = pb.ExchangeEnqueue(spec=job_spec())
                yield pb.ExchangeRequest(correlation_id=number, enqueue=enqueue)

        async for response in self._stubs[0].Exchange(requests()):
            now_s = time.monotonic()
            for result in response.results:
                room.release()
                if result.HasField("error"):
                    results.errors.append(result.error.message)
                else:
                    results.took_s.append(now_s - sent_s.pop(result.correlation_id))
            if len(results.took_s) + len(results.errors) >= calls:
                break
        return results.fields()

    async def idle(self, fields: Fields) -> Fields:
        """Opens streams on one job that waits, and keeps them."""
        receipt = await self._enqueue()
        for _ in range(int(fields["streams"])):
            stub = self._stubs[self._followed // STREAMS_PER_CONNECTION]
            self._followed += 1
            call = stub.StreamTokens(pb.StreamTokensRequest(job_id=receipt.job_id))
            await call.read()
            self._kept.append(call)
        return {}


async def main() -> None:
    """Gives jobs until the driver ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    giver = Giver(parser.parse_args().address)
    await obey(
        {
            "warm_up": giver.warm_up,
            "at_rate": giver.at_rate,
            "fast": giver.fast,
            "fast_exchange": giver.fast_exchange,
            "idle": giver.idle,
        }
    )


if __name__ == "__main__":
    asyncio.run(main())
