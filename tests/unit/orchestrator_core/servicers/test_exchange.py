"""Bounds of an Exchange stream, and requests that do not wait for each other. LO-306, LO-302."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.servicers.exchange import Caller, Exchanges, Forget, JobCalls, Tell
from orchestrator_core.servicers.exchange_session import ExchangeLimits, ExchangeSession
from orchestrator_core.servicers.follow import Audience
from tests.unit.orchestrator_core.servicers.session_world import FakeRuntime

WAIT_S = 20.0
LIMITS = ExchangeLimits(handles_max=2, requests_max=3)


class FakeContext:
    """A call whose requests a test gives, and whose writes it may hold up."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.requests: asyncio.Queue[pb.ExchangeRequest | object] = asyncio.Queue()
        self.reads = 0
        self.results: list[pb.ExchangeResult] = []
        self._writes = asyncio.Event()
        self._came = asyncio.Condition()
        if not stuck:
            self._writes.set()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """As gRPC."""
        return (("traceparent", "stream"), ("x-correlation-id", "abc"))

    async def read(self) -> object:
        """As gRPC."""
        request = await self.requests.get()
        self.reads += 1
        return request

    async def write(self, message: bytes) -> None:
        """As gRPC."""
        await self._writes.wait()
        async with self._came:
            self.results += pb.ExchangeResponse.FromString(message).results
            self._came.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits until something is so; checked at each message."""
        async with asyncio.timeout(WAIT_S), self._came:
            await self._came.wait_for(true)


class FakeCalls:
    """Enqueue answers when told to; cancel at once. Keeps who asked."""

    def __init__(self) -> None:
        self.durable = asyncio.Event()
        self.callers: list[Caller] = []

    async def enqueue(self, spec: job_pb2.JobSpec, caller: Caller) -> pb.EnqueueResponse:
        """Waits as for the journal."""
        self.callers.append(caller)
        await self.durable.wait()
        return pb.EnqueueResponse(job_id=spec.job_id)

    async def cancel(self, job_id: str, _: Caller) -> pb.CancelResponse:
        """Answers at once."""
        return pb.CancelResponse(job=job_pb2.Job(job_id=job_id))


class GivingCalls(FakeCalls):
    """The same without tasks: `answer` tells of all jobs that were given."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[], None]] = []
        self.order: list[str] = []
        self.forgotten = 0

    def give(self, spec: job_pb2.JobSpec, _: Caller, tell: Tell) -> Forget:
        """As the orchestrator's."""
        self.order.append(spec.job_id)
        answer = pb.EnqueueResponse(job_id=spec.job_id)
        self.waiting.append(lambda: tell(lambda: answer))
        return self.forget

    def forget(self) -> None:
        """Its stream went away."""
        self.forgotten += 1

    async def cancel(self, job_id: str, caller: Caller) -> pb.CancelResponse:
        """Notes when it began."""
        self.order.append(job_id)
        return await super().cancel(job_id, caller)

    def answer(self) -> None:
        """The journal is written."""
        for tell in self.waiting:
            tell()


class Bench:
    """One stream on fakes."""

    def __init__(self, *, stuck: bool = False, calls: FakeCalls | None = None) -> None:
        self.calls = calls or FakeCalls()
        self.context = FakeContext(stuck=stuck)
        runtime = cast("Any", FakeRuntime(9))
        served = JobCalls(self.calls.enqueue, self.calls.cancel)
        if isinstance(self.calls, GivingCalls):
            served = JobCalls(self.calls.enqueue, self.calls.cancel, self.calls.give)
        self.exchanges = Exchanges(runtime, Audience(runtime), served, LIMITS)
        self.serving = asyncio.create_task(self.exchanges.serve(cast("Any", self.context)))

    def give(self, number: int, **request: Any) -> None:
        """The client sends a request."""
        self.context.requests.put_nowait(pb.ExchangeRequest(correlation_id=number, **request))

    def enqueue(self, number: int, job_id: str, *, subscribe: bool = False) -> None:
        """The client gives a job."""
        spec = job_pb2.JobSpec(job_id=job_id)
        self.give(number, enqueue=pb.ExchangeEnqueue(spec=spec, subscribe=subscribe))

    async def answers(self, count: int) -> dict[int, pb.ExchangeResult]:
        """Waits for so many results; by correlation id."""
        await self.context.until(lambda: len(self.context.results) >= count)
        return {result.correlation_id: result for result in self.context.results}

    async def close(self) -> None:
        """The client closes its side; the stream must end well."""
        self.context.requests.put_nowait(grpc.aio.EOF)
        await asyncio.wait_for(self.serving, WAIT_S)


def told(result: pb.ExchangeResult) -> tuple[str, str, bool]:
    """Reason, policy label, and whether a retry has a time."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    result.error.details[0].Unpack(info)
    delayed = any(detail.Unpack(retry) for detail in result.error.details)
    return info.reason, info.metadata["policy_label"], delayed


async def test_requests_beyond_the_bound_are_refused_by_name() -> None:
    """The others go on waiting for the journal and are answered when it is written."""
    bench = Bench()
    for number in range(1, 5):
        bench.enqueue(number, f"job-{number}")

    refused = (await bench.answers(1))[4]
    bench.calls.durable.set()
    answers = await bench.answers(4)
    await bench.close()

    assert told(refused) == ("ADMISSION_REJECT", "exchange-requests", True)
    assert "3 requests" in refused.error.message
    assert [answers[n].enqueued.job_id for n in (1, 2, 3)] == ["job-1", "job-2", "job-3"]


async def test_jobs_given_without_a_task_count_and_are_answered_together() -> None:
    """They are under way like any other request until the journal is written."""
    calls = GivingCalls()
    bench = Bench(calls=calls)
    for number in range(1, 5):
        bench.enqueue(number, f"job-{number}")

    refused = (await bench.answers(1))[4]
    calls.answer()
    answers = await bench.answers(4)
    await bench.close()

    assert told(refused) == ("ADMISSION_REJECT", "exchange-requests", True)
    assert [answers[n].enqueued.job_id for n in (1, 2, 3)] == ["job-1", "job-2", "job-3"]
    assert calls.forgotten == 0


async def test_a_job_does_not_overtake_a_request_before_it() -> None:
    """Requests take effect in their order, those with a task and those without."""
    calls = GivingCalls()
    bench = Bench(calls=calls)
    bench.give(1, cancel=pb.ExchangeCancel(job_id="job-1"))
    bench.enqueue(2, "job-2")
    calls.durable.set()

    await bench.answers(2)
    await bench.close()

    # The second is awaited in a task of its own, as the first had not begun.
    assert calls.order == ["job-1"]
    assert len(calls.callers) == 1


async def test_a_stream_that_is_cut_waits_for_no_answer() -> None:
    """Its jobs go on; nobody is told of them."""
    calls = GivingCalls()
    bench = Bench(calls=calls)
    bench.enqueue(1, "job-1")
    bench.give(2, cancel=pb.ExchangeCancel(job_id="job-2"))
    await bench.answers(1)

    bench.serving.cancel()
    await asyncio.wait((bench.serving,))
    calls.answer()
    await asyncio.sleep(0)

    assert calls.forgotten == 1
    assert [result.correlation_id for result in bench.context.results] == [2]


async def test_handles_beyond_the_bound_are_refused_by_name() -> None:
    """Also while those before are still on their way; nothing is accepted then."""
    bench = Bench()
    for number in (1, 2, 3):
        bench.enqueue(number, f"job-{number}", subscribe=True)

    refused = (await bench.answers(1))[3]
    bench.calls.durable.set()
    answers = await bench.answers(3)
    bench.give(4, subscribe=pb.ExchangeSubscribe(job_id="job-4"))
    still = (await bench.answers(4))[4]
    bench.give(5, unsubscribe=pb.ExchangeUnsubscribe(handle=answers[1].handle))
    bench.give(6, subscribe=pb.ExchangeSubscribe(job_id="nobody"))
    free = (await bench.answers(6))[6]
    bench.serving.cancel()
    await asyncio.wait((bench.serving,))

    assert told(refused) == told(still) == ("ADMISSION_REJECT", "exchange-handles", True)
    assert len(bench.calls.callers) == 2
    assert told(free)[0] == "NOT_FOUND"


async def test_a_cancel_overtakes_an_enqueue_that_waits() -> None:
    """Results come in any order."""
    bench = Bench()
    bench.enqueue(1, "job-1")
    bench.give(2, cancel=pb.ExchangeCancel(job_id="job-2"))

    first = list(await bench.answers(1))
    bench.calls.durable.set()
    await bench.close()

    assert first == [2]
    assert [result.correlation_id for result in bench.context.results] == [2, 1]


async def test_a_client_that_does_not_read_its_results_is_not_read_from() -> None:
    """Results that cannot be sent are bounded, and so is what is made of its requests."""
    bench = Bench(stuck=True)
    for number in range(1, 101):
        bench.give(number, unsubscribe=pb.ExchangeUnsubscribe(handle=7))

    for _ in range(1_000):
        await asyncio.sleep(0)
    reads = bench.context.reads
    bench.context._writes.set()
    answers = await bench.answers(100)
    await bench.close()

    assert reads <= 2 * LIMITS.requests_max + 1
    assert len(answers) == 100


async def test_a_request_may_carry_its_own_trace_context() -> None:
    """Else that of the stream counts; the rest of the metadata is the stream's in either case."""
    bench = Bench()
    bench.calls.durable.set()
    bench.enqueue(1, "job-1")
    spec = job_pb2.JobSpec(job_id="job-2")
    bench.give(2, enqueue=pb.ExchangeEnqueue(spec=spec), traceparent="own")

    await bench.answers(2)
    await bench.close()

    contexts = [dict(caller.metadata) for caller in bench.calls.callers]
    assert [context["traceparent"] for context in contexts] == ["stream", "own"]
    assert [context["x-correlation-id"] for context in contexts] == ["abc", "abc"]


async def test_a_bug_met_by_one_request_is_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream, and whatever else is on it, goes on."""

    def broken(*_: object) -> int:
        raise ValueError("planted")

    monkeypatch.setattr(ExchangeSession, "acknowledge", broken)
    bench = Bench()

    with capture_logs() as lines:
        bench.give(1, ack=pb.ExchangeAck())
        bench.give(2, cancel=pb.ExchangeCancel(job_id="job-1"))
        answers = await bench.answers(2)
        await bench.close()

    assert "internal_error" in {line["event"] for line in lines}
    assert told(answers[1])[0] == "INTERNAL"
    assert answers[2].cancelled.job.job_id == "job-1"
