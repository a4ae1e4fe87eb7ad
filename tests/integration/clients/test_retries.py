"""Contract of retrying: what is repeated, when, and how often."""

import asyncio
import dataclasses

import pytest

from llamaorch_client import (
    AsyncClient,
    ClientOptions,
    JobRequest,
    RejectedError,
    RetryOptions,
    UnavailableError,
)
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.fake_time import FakeTime
from tests.integration.clients.scripted_server import Failure, Hang, ScriptedServer

JOB = JobRequest(model_id="tiny", prompt="Hi")


async def test_a_rejection_is_retried_no_earlier_than_the_server_said(
    server: ScriptedServer,
) -> None:
    """ORCH-2007, ORCH-3017: RetryInfo is the lower bound, and the request_id stays."""
    server.on("Enqueue", wire.rejected(250), wire.rejected(1000), wire.accepted())
    clock = FakeTime(fraction=0.5)
    options = ClientOptions(timing=clock.timing, retry=RetryOptions(jitter_max_ms=100))

    async with AsyncClient(server.address, options=options) as client:
        receipt = await client.enqueue(JOB)

    assert clock.sleeps_ms == [300.0, 1050.0]
    sent = server.made("Enqueue")
    assert {call.request.spec.request_id for call in sent} == {receipt.request_id}
    assert len({call.metadata["x-correlation-id"] for call in sent}) == 1
    assert len(sent) == 3


async def test_an_unreachable_moment_is_retried_with_growing_waits(
    server: ScriptedServer, client: AsyncClient, clock: FakeTime
) -> None:
    """ORCH-3024: the job may have been accepted; the same request_id makes a retry safe."""
    server.on("Enqueue", *[wire.unavailable()] * 3, wire.accepted(duplicate=True))

    receipt = await client.enqueue(JOB)

    assert receipt.duplicate
    assert clock.sleeps_ms == [50, 100, 200]
    assert len({call.request.spec.request_id for call in server.made("Enqueue")}) == 1


async def test_retries_are_bounded_by_attempts(server: ScriptedServer, clock: FakeTime) -> None:
    """The last error is raised and says how many attempts were made."""
    server.on("Enqueue", wire.rejected(10))
    options = ClientOptions(timing=clock.timing, retry=RetryOptions(attempts_max=3))

    async with AsyncClient(server.address, options=options) as client:
        with pytest.raises(RejectedError) as caught:
            await client.enqueue(JOB)

    assert (caught.value.attempts, len(server.made("Enqueue"))) == (3, 3)


async def test_a_retry_that_would_begin_too_late_is_not_made(
    server: ScriptedServer, clock: FakeTime
) -> None:
    """The total time is bounded: a delay beyond it gives the error at once."""
    server.on("Enqueue", wire.rejected(400), wire.rejected(700))
    options = ClientOptions(timing=clock.timing, retry=RetryOptions(time_max_ms=1_000))

    async with AsyncClient(server.address, options=options) as client:
        with pytest.raises(RejectedError):
            await client.enqueue(JOB)

    assert (clock.sleeps_ms, len(server.made("Enqueue"))) == ([400], 2)


@pytest.mark.parametrize(
    ("failure", "retry"),
    [
        (wire.rejected(100), RetryOptions(retry_rejected=False)),
        (wire.rejected(None), RetryOptions()),
        (
            dataclasses.replace(wire.rejected(100), metadata={"retriable": "false"}),
            RetryOptions(),
        ),
    ],
    ids=["not wanted", "no delay told", "not retriable"],
)
async def test_a_rejection_is_given_at_once_where_a_retry_is_unwanted_or_useless(
    server: ScriptedServer, clock: FakeTime, failure: Failure, retry: RetryOptions
) -> None:
    """ORCH-3016: the caller learns reason, policy and delay without waiting."""
    server.on("Enqueue", failure)
    options = ClientOptions(timing=clock.timing, retry=retry)

    async with AsyncClient(server.address, options=options) as client:
        with pytest.raises(RejectedError) as caught:
            await client.enqueue(JOB)

    assert (len(server.made("Enqueue")), clock.sleeps_ms) == (1, [])
    assert caught.value.policy_label == failure.metadata.get("policy_label", "")
    assert caught.value.retry_after_ms == failure.retry_after_ms


async def test_a_server_that_does_not_answer_in_time_is_unavailable(
    server: ScriptedServer, clock: FakeTime
) -> None:
    """One attempt of a unary call is bounded, and so are the attempts."""
    server.on("GetJob", Hang())
    options = ClientOptions(
        timing=clock.timing, rpc_timeout_ms=50, retry=RetryOptions(attempts_max=2)
    )

    async with AsyncClient(server.address, options=options) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.get_job("job-1")

    assert (caught.value.code, caught.value.attempts) == ("DEADLINE_EXCEEDED", 2)


async def test_nobody_listening_is_unavailable(unused_address: str, clock: FakeTime) -> None:
    """A refused connection is an UnavailableError of this package."""
    async with AsyncClient(unused_address, options=ClientOptions(timing=clock.timing)) as client:
        with pytest.raises(UnavailableError):
            await client.capabilities()


async def test_cancelling_the_caller_cancels_the_call(
    server: ScriptedServer, client: AsyncClient
) -> None:
    """The caller's own cancellation is not swallowed and not retried."""
    server.on("GetJob", Hang())
    waiting = asyncio.create_task(client.get_job("job-1"))
    await server.wait_for("GetJob")

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(server.made("GetJob")) == 1
