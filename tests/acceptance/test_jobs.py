"""The main job, end to end: real services, real engine, real client."""

import asyncio
from collections.abc import AsyncIterator

import psutil
import pytest

from demo.services import Stack
from llamaorch_client import (
    AsyncClient,
    ChatMessage,
    ClientOptions,
    End,
    Event,
    FailoverPolicy,
    FinishReason,
    JobFailedError,
    JobState,
    RejectedError,
    Resumed,
    ResumeMode,
    RetryOptions,
    Sampling,
    Started,
    Tokens,
    UnavailableError,
)
from tests.acceptance.conftest import StartStack

WAIT_S = 30.0
LONG = 1_900
ONE_SHOT = ClientOptions(retry=RetryOptions(retry_rejected=False))


def text_of(events: list[Event]) -> str:
    """Text of all token events."""
    return "".join(event.text for event in events if isinstance(event, Tokens))


async def drain(stream: AsyncIterator[Event]) -> None:
    """Reads a stream to its end."""
    async for _ in stream:
        pass


def engine_of(stack: Stack) -> psutil.Process:
    """The engine's worker process below the pool manager."""
    (worker,) = psutil.Process(stack.pool_manager.process.pid).children()
    return worker


async def test_jobs_of_one_model_stream_their_tokens(start_stack: StartStack) -> None:
    """Several jobs at once run to their ends with whole text, in queue order."""
    stack = await start_stack()

    async with AsyncClient(stack.address) as client:

        async def one(seed: int) -> list[Event]:
            sampling = Sampling(max_tokens=40, seed=seed)
            return [e async for e in client.run(model_id="tiny", prompt="Hi", sampling=sampling)]

        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(*(one(seed) for seed in range(1, 6)))

    for events in results:
        end = events[-1]
        assert isinstance(end, End)
        assert end.finish_reason is FinishReason.LENGTH
        assert end.usage.tokens_out == 40
        assert end.text_bytes == len(text_of(events).encode()) > 0
        assert sum(isinstance(event, Started) for event in events) == 1


async def test_cancel_in_the_queue_never_starts(start_stack: StartStack) -> None:
    """A waiting job ends as CANCELLED without `started`, and its place is free at once."""
    stack = await start_stack(slots=1)

    async with AsyncClient(stack.address) as client, asyncio.timeout(WAIT_S):
        first = await client.enqueue(
            model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=LONG)
        )
        second = await client.enqueue(model_id="tiny", prompt="Hi")
        job = await client.cancel(second.job_id)
        events = [event async for event in client.stream(second.job_id)]
        await client.cancel(first.job_id)

    assert job.state is JobState.CANCELLED
    assert not any(isinstance(event, Started | Tokens) for event in events)
    assert isinstance(events[-1], End)


async def test_cancel_while_running_stops_the_engine(start_stack: StartStack) -> None:
    """No token follows the end, and the slot is idle at the engine within a second."""
    stack = await start_stack(slots=1)

    async with AsyncClient(stack.address) as client, asyncio.timeout(WAIT_S):
        stream = client.run(model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=LONG))
        events: list[Event] = []
        cancelled = None
        async for event in stream:
            events.append(event)
            if isinstance(event, Tokens) and cancelled is None:
                assert stream.receipt is not None
                cancelled = await client.cancel(stream.receipt.job_id)
        async with asyncio.timeout(1.0):
            # The pool takes the next job only after the engine has confirmed that the slot is idle.
            following = client.run(model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=1))
            await anext(event async for event in following if isinstance(event, Started))

    assert cancelled is not None
    assert cancelled.state is JobState.CANCELLED
    assert isinstance(events[-1], End)
    assert events[-1].finish_reason is FinishReason.CANCELLED
    assert 0 < events[-1].text_bytes == len(text_of(events).encode())


async def test_full_queue_refuses_with_a_delay(start_stack: StartStack) -> None:
    """Beyond the capacity a job is refused with the policy's name and a time to come back."""
    stack = await start_stack(slots=1, orchestrator_toml="[queue]\ncapacity = 1\n")

    async with AsyncClient(stack.address, options=ONE_SHOT) as client, asyncio.timeout(WAIT_S):
        receipts = [
            await client.enqueue(model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=LONG))
            for _ in range(2)
        ]
        with pytest.raises(RejectedError) as caught:
            await client.enqueue(model_id="tiny", prompt="Hi")
        for receipt in receipts:
            await client.cancel(receipt.job_id)

    assert caught.value.retry_after_ms is not None
    assert caught.value.retry_after_ms > 0


async def test_engine_killed_mid_stream_is_never_a_silent_end(start_stack: StartStack) -> None:
    """With failover FAIL the job ends with WORKER_RESET; the pool restarts and serves again."""
    stack = await start_stack(slots=1)

    async with AsyncClient(stack.address) as client, asyncio.timeout(WAIT_S):
        stream = client.run(
            model_id="tiny",
            prompt="Hi",
            sampling=Sampling(max_tokens=LONG),
            failover=FailoverPolicy.FAIL,
        )
        while not isinstance(await anext(stream), Tokens):
            pass
        engine_of(stack).kill()
        with pytest.raises(JobFailedError) as caught:
            await drain(stream)
        again = client.run(model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=5))
        events = [event async for event in again]

    assert caught.value.reason == "WORKER_RESET"
    assert isinstance(events[-1], End)


async def test_engine_killed_mid_stream_completes_by_verified_replay(
    start_stack: StartStack,
) -> None:
    """On a deterministic pool a job goes on at the byte on the restarted engine."""
    stack = await start_stack(slots=1, deterministic=True)
    sampling = Sampling(max_tokens=LONG, temperature=0.0)

    async with AsyncClient(stack.address) as client, asyncio.timeout(WAIT_S):
        calm = [e async for e in client.run(model_id="tiny", prompt="Hi", sampling=sampling)]
        killed = False
        events: list[Event] = []
        async for event in client.run(model_id="tiny", prompt="Hi", sampling=sampling):
            events.append(event)
            if isinstance(event, Tokens) and not killed:
                engine_of(stack).kill()
                killed = True

    assert killed
    assert isinstance(events[-1], End)
    assert text_of(events) == text_of(calm)


async def test_engine_killed_mid_stream_is_continued(start_stack: StartStack) -> None:
    """LO-304: a sampled answer goes on after the delivered text, counted once and announced."""
    stack = await start_stack(slots=1)
    sampling = Sampling(max_tokens=LONG, temperature=1.0, seed=7)
    chat = (ChatMessage("user", "Hi"),)

    async with AsyncClient(stack.address) as client, asyncio.timeout(WAIT_S):
        calm = [e async for e in client.run(model_id="tiny", messages=chat, sampling=sampling)]
        killed = False
        events: list[Event] = []
        async for event in client.run(
            model_id="tiny", messages=chat, sampling=sampling, failover=FailoverPolicy.CONTINUE
        ):
            events.append(event)
            if isinstance(event, Tokens) and not killed:
                engine_of(stack).kill()
                killed = True

    end, uninterrupted = events[-1], calm[-1]
    (resumed,) = [event for event in events if isinstance(event, Resumed)]
    assert (resumed.attempt, resumed.mode) == (2, ResumeMode.CONTINUE)
    assert 0 < resumed.text_offset < len(text_of(events).encode())
    assert not resumed.kv_warmth
    assert isinstance(end, End)
    assert isinstance(uninterrupted, End)
    assert end.text_bytes == len(text_of(events).encode())
    assert end.usage.tokens_in == uninterrupted.usage.tokens_in
    assert end.usage.tokens_out == uninterrupted.usage.tokens_out == LONG


async def test_sigterm_lets_running_jobs_finish(start_stack: StartStack) -> None:
    """A drain takes no new job, loses no token, and ends with exit code 0."""
    stack = await start_stack(slots=1)

    async with AsyncClient(stack.address, options=ONE_SHOT) as client, asyncio.timeout(WAIT_S):
        stream = client.run(model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=LONG))
        events = [await anext(stream)]
        while not isinstance(events[-1], Tokens):
            events.append(await anext(stream))
        stack.orchestrator.process.terminate()
        await stack.orchestrator.event("drain_started")
        try:
            with pytest.raises((UnavailableError, RejectedError)):
                await client.enqueue(model_id="tiny", prompt="late")
        finally:
            events.extend([event async for event in stream])
        code = await stack.orchestrator.process.wait()

    end = events[-1]
    assert code == 0
    assert isinstance(end, End)
    assert end.usage.tokens_out == LONG
    assert end.text_bytes == len(text_of(events).encode())


async def test_accepted_jobs_survive_kill_of_the_orchestrator(start_stack: StartStack) -> None:
    """After kill -9 and a restart the running stream goes on and the waiting job still runs."""
    stack = await start_stack(slots=1)

    async with AsyncClient(stack.address) as client, asyncio.timeout(WAIT_S):
        running = client.run(model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=LONG))
        events = [await anext(running)]
        while not isinstance(events[-1], Tokens):
            events.append(await anext(running))
        waiting = await client.enqueue(
            model_id="tiny", prompt="Hi", sampling=Sampling(max_tokens=5)
        )
        stack.orchestrator.process.kill()
        await stack.orchestrator.process.wait()
        await stack.start_orchestrator()
        events.extend([event async for event in running])
        later = [event async for event in client.stream(waiting.job_id)]

    assert isinstance(events[-1], End)
    assert events[-1].usage.tokens_out == LONG
    assert events[-1].text_bytes == len(text_of(events).encode())
    assert isinstance(later[-1], End)
    assert later[-1].usage.tokens_out == 5
