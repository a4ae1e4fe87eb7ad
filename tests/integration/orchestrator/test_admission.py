"""Limits, budgets and guardrails over real gRPC. ORCH-3006, ORCH-3014."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import grpc
import pytest

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.orchestrator.v1.orchestrator_service_pb2_grpc import OrchestratorServiceStub
from tests.integration.orchestrator.calls import details, enqueue, ready_host
from tests.integration.orchestrator.conftest import StartOrchestrator


async def test_everybody_shares_the_anonymous_limits(start_orchestrator: StartOrchestrator) -> None:
    """Until callers prove who they are; the override of that name reaches the core."""
    orchestrator = await start_orchestrator(
        throttle={"identities": {"anonymous": {"requests_per_min": 1}}}
    )
    await ready_host(orchestrator)
    await enqueue(orchestrator)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await enqueue(orchestrator)

    info, others = details(caught.value)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (info.reason, info.metadata["policy_label"]) == ("ADMISSION_REJECT", "throttle-requests")
    assert info.metadata["limit"] == "1"
    wait_ms = others["RetryInfo"].retry_delay.ToMilliseconds()  # type: ignore[attr-defined]
    assert 0 < wait_ms <= 60_000
    (violation,) = others["QuotaFailure"].violations  # type: ignore[attr-defined]
    assert violation.subject == "client anonymous"


async def test_a_budget_caps_what_the_host_is_asked_for(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The client asked for more than its budget holds after the prompt."""
    orchestrator = await start_orchestrator()
    host = await ready_host(orchestrator)

    await enqueue(
        orchestrator,
        input=job_pb2.JobInput(text="x" * 40),
        sampling=job_pb2.Sampling(max_tokens=95),
        budgets=job_pb2.Budgets(tokens=100),
    )
    start = await host.start()

    assert start.sampling.max_tokens == 90


async def test_a_budget_that_cannot_hold_the_job_names_its_field(
    start_orchestrator: StartOrchestrator,
) -> None:
    """And a cost without a price names the key to set at the server."""
    orchestrator = await start_orchestrator()
    await ready_host(orchestrator)

    with pytest.raises(grpc.aio.AioRpcError) as small:
        await enqueue(
            orchestrator,
            sampling=job_pb2.Sampling(max_tokens=100),
            budgets=job_pb2.Budgets(tokens=100),
        )
    with pytest.raises(grpc.aio.AioRpcError) as unpriced:
        await enqueue(orchestrator, budgets=job_pb2.Budgets(cost_micros=100))

    info, others = details(small.value)
    assert (info.metadata["policy_label"], info.metadata["retriable"]) == ("budget", "false")
    (wrong,) = others["BadRequest"].field_violations  # type: ignore[attr-defined]
    assert wrong.field == "spec.budgets.tokens"
    assert unpriced.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "admission.price_micros_per_1k_tokens" in (unpriced.value.details() or "")


async def test_calls_that_come_all_at_once_are_all_answered(
    start_orchestrator: StartOrchestrator,
) -> None:
    """By us and with a reason, late as it may be: gRPC alone would end a part of them with none."""
    orchestrator = await start_orchestrator()
    own_connection = (("grpc.use_local_subchannel_pool", 1),)
    request = pb.GetJobRequest(job_id="not-there")

    async with AsyncExitStack() as stack, asyncio.timeout(120):
        stubs = [
            OrchestratorServiceStub(
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(str(orchestrator.server.address), own_connection)
                )
            )
            for _ in range(2)
        ]
        # Nobody takes calls up before all are there: this is the server's event loop, too.
        answers = await asyncio.gather(
            *(stub.GetJob(request) for stub in stubs for _ in range(1_000)), return_exceptions=True
        )

    reasons = Counter(
        details(answer)[0].reason
        if isinstance(answer, grpc.aio.AioRpcError) and answer.code() is grpc.StatusCode.NOT_FOUND
        else repr(answer)
        for answer in answers
    )
    assert reasons == {"NOT_FOUND": 2_000}
