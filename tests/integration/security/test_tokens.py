"""Tokens over real sockets: who is refused, how, and what is told of it."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status.rpc_status import from_call

from llamaorch.orchestrator.v1 import job_pb2, session_service_pb2, session_service_pb2_grpc
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from orchestrator_core.auth.roles import ALLOWED
from orchestrator_core.auth.tokens import Role, fingerprint, new_token
from orchestrator_core.servicers import rpc
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot
from tests.integration.security.conftest import Guarded, StartGuarded

WAIT_S = 10.0


async def outcome(
    channel: grpc.aio.Channel, method: str, metadata: tuple[tuple[str, str], ...]
) -> tuple[grpc.StatusCode, str, str]:
    """The code, the reason and the text of a call that sends no message at all."""
    call = channel.stream_stream(method)(metadata=metadata)
    try:
        async with asyncio.timeout(WAIT_S):
            code, text = await call.code(), await call.details()
        status = from_call_parts(code, text, await call.trailing_metadata())
    finally:
        call.cancel()
    return code, status, text or ""


def from_call_parts(code: grpc.StatusCode, text: str, trailing: object) -> str:
    """The reason in the ErrorInfo of an ended call; empty without one."""

    class Ended:
        def code(self) -> grpc.StatusCode:
            return code

        def details(self) -> str:
            return text

        def trailing_metadata(self) -> object:
            return trailing

    status = from_call(Ended())  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    if status is None or not status.details or not status.details[0].Unpack(info):
        return ""
    return info.reason


GUARDED_METHODS = sorted(method for method, roles in ALLOWED.items() if roles)


@pytest.mark.parametrize("method", [*GUARDED_METHODS, "/x.Unknown/Method"])
async def test_without_a_token_every_call_is_refused_before_it_is_read(
    guarded: Guarded, channel: grpc.aio.Channel, method: str
) -> None:
    """AUTH-1001: of every service and style, also reflection, and though no message ever comes."""
    code, reason, text = await outcome(channel, method, ())

    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert "authorization" in text


async def test_each_role_is_refused_what_it_is_not_for(
    guarded: Guarded, channel: grpc.aio.Channel
) -> None:
    """AUTH-1003: the whole table, over the wire."""
    refused = [
        (role.value, method)
        for method in GUARDED_METHODS
        for role in Role
        if role not in ALLOWED[method]
    ]
    assert len(refused) == 42

    for role, method in refused:
        code, reason, text = await outcome(channel, method, guarded.metadata(role))

        assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"), method
        assert f"role {role}" in text


@pytest.mark.parametrize("token", [new_token(), "x", "a" * 257], ids=["foreign", "short", "long"])
async def test_a_foreign_token_is_refused_and_not_repeated(
    guarded: Guarded,
    channel: grpc.aio.Channel,
    token: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """AUTH-1004, AUTH-1008: neither the error nor the log has more of it than six digits."""
    metadata = (("authorization", f"Bearer {token}"),)
    stub = jobs_grpc.OrchestratorServiceStub(channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetOverview(jobs_pb2.GetOverviewRequest(), metadata=metadata)

    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    logged = capsys.readouterr()
    assert "call_refused" in logged.out + logged.err
    assert len(token) == 257 or fingerprint(token) in logged.out + logged.err
    assert len(token) == 1 or token not in str(caught.value) + logged.out + logged.err


async def test_health_is_open(guarded: Guarded, channel: grpc.aio.Channel) -> None:
    """Load balancers have no token; unary and stream."""
    stub = health_pb2_grpc.HealthStub(channel)

    answer = await stub.Check(health_pb2.HealthCheckRequest())
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    first = await watch.read()
    watch.cancel()

    assert answer.status == first.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_refused_caller_gets_its_correlation_id_back(
    guarded: Guarded, channel: grpc.aio.Channel
) -> None:
    """HME-030: also where the call ends at the door."""
    call = jobs_grpc.OrchestratorServiceStub(channel).GetOverview(
        jobs_pb2.GetOverviewRequest(), metadata=((rpc.CORRELATION_KEY, "mine"),)
    )

    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    assert dict(await call.initial_metadata())[rpc.CORRELATION_KEY] == "mine"


def spec(**fields: object) -> job_pb2.JobSpec:
    """A minimal job."""
    base: dict[str, object] = {"model_id": "tiny", "input": job_pb2.JobInput(text="hello")}
    return job_pb2.JobSpec(**(base | fields))  # type: ignore[arg-type]


async def test_limits_and_sessions_hold_for_the_owner_of_a_token(
    start_guarded: StartGuarded,
) -> None:
    """ORCH-3006, AUTH-1007: an owner's limit and sessions are his own, on Exchange too."""
    guarded = await start_guarded(throttle={"identities": {"client": {"requests_per_min": 1}}})
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        host = ScriptedHost(channel, "host-1", "boot-1", guarded.metadata("pool"))
        await host.register(snapshot())
        stub = jobs_grpc.OrchestratorServiceStub(channel)
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        client, admin = guarded.metadata("client"), guarded.metadata("admin")
        request = jobs_pb2.EnqueueRequest(spec=spec(session_id="talk"))

        exchanged = jobs_pb2.ExchangeEnqueue(spec=request.spec)

        await stub.Enqueue(request, metadata=client)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Enqueue(request, metadata=client)
        stream = stub.Exchange(metadata=client)
        await stream.write(jobs_pb2.ExchangeRequest(correlation_id=1, enqueue=exchanged))
        answer = await stream.read()
        stream.cancel()
        await stub.Enqueue(request, metadata=admin)
        listed = await sessions.ListSessions(
            session_service_pb2.ListSessionsRequest(), metadata=client
        )
        with pytest.raises(grpc.aio.AioRpcError) as foreign:
            await sessions.GetSession(
                session_service_pb2.GetSessionRequest(session_id="talk"),
                metadata=guarded.metadata("pool"),
            )

        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "client" in caught.value.details()
        assert answer.results[0].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert [session.turns for session in listed.sessions] == [1]
        assert foreign.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await host.close()


async def test_capabilities_tell_the_limits_of_the_owner_of_a_token(
    start_guarded: StartGuarded,
) -> None:
    """ORCH-3095: what a client is told are the limits that it will meet."""
    guarded = await start_guarded(throttle={"identities": {"client": {"queued_jobs": 3}}})
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub = jobs_grpc.OrchestratorServiceStub(channel)

        told = [
            await stub.GetCapabilities(
                jobs_pb2.GetCapabilitiesRequest(), metadata=guarded.metadata(name)
            )
            for name in ("client", "admin")
        ]

    assert [each.limits.queued_jobs for each in told] == [3, 0]
    assert all(each.limits.streams_per_connection_max > 0 for each in told)
