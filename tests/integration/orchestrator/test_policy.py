"""Outbound policy as tools see it: over sockets and the command line. ORCH-3080, ORCH-3206."""

import socket

import grpc
import pytest
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import policy_service_pb2 as pb
from llamaorch_client import AsyncClient, InvalidParamsError
from orchestrator_core.config.schema import Config
from orchestrator_core.errors import CannotStartError
from orchestrator_core.server import OrchestratorServer
from tests.integration.clients.llorch import llorch
from tests.integration.orchestrator.calls import details
from tests.integration.orchestrator.conftest import StartOrchestrator

OUTBOUND = {"enabled": True, "allow": ["docs.example"], "deny": ["*.evil.example"]}


async def test_the_command_line_answers_by_its_exit_code(
    start_orchestrator: StartOrchestrator,
) -> None:
    """0 is allowed, 5 denied, 2 no address: a script can go by it."""
    running = await start_orchestrator(outbound=OUTBOUND)
    address = str(running.server.address)

    allowed = await llorch(address, "policy", "check", "https://docs.example/a")
    denied = await llorch(address, "policy", "check", "http://a.evil.example", "--json")
    nonsense = await llorch(address, "policy", "check", "docs.example")

    assert (allowed.code, allowed.stdout) == (
        0,
        "https://docs.example is allowed by outbound.allow docs.example\n",
    )
    decision = denied.records()[0]["decision"]
    assert (denied.code, decision["allowed"]) == (5, False)
    assert decision["rule"] == "outbound.deny *.evil.example"
    assert nonsense.code == 2
    assert "must be SCHEME://HOST" in nonsense.stderr, nonsense.stderr


async def test_each_decision_is_logged_with_its_ids_and_without_the_path(
    start_orchestrator: StartOrchestrator,
) -> None:
    """Whoever finds the line knows who asked; paths and queries can hold secrets."""
    running = await start_orchestrator(outbound=OUTBOUND)
    request = pb.CheckOutboundRequest(
        url="https://docs.example/secret?key=secret", job_id="j", session_id="s", tool="browser"
    )

    with capture_logs() as lines:
        answer = await running.policy.CheckOutbound(
            request, metadata=(("x-correlation-id", "corr"),)
        )

    (line,) = [line for line in lines if line["event"] == "outbound_decision"]
    assert {key: line[key] for key in ("job_id", "session_id", "tool", "correlation_id")} == {
        "job_id": "j",
        "session_id": "s",
        "tool": "browser",
        "correlation_id": "corr",
    }
    assert (line["allowed"], line["rule"], line["remote_host"], line["scheme"]) == (
        True,
        "outbound.allow docs.example",
        "docs.example",
        "https",
    )
    assert line["decision_id"] == answer.decision_id
    assert "secret" not in str(line)


async def test_every_bad_field_is_named(start_orchestrator: StartOrchestrator) -> None:
    """BadRequest, not a denial: the tool asked for nothing that could be judged."""
    running = await start_orchestrator(outbound=OUTBOUND)
    request = pb.CheckOutboundRequest(url="https://a@docs.example", tool="x" * 129)

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await running.policy.CheckOutbound(request)

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = details(raised.value)[1]["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [item.field for item in bad.field_violations] == ["tool", "url"]
    async with AsyncClient(str(running.server.address)) as client:
        with pytest.raises(InvalidParamsError):
            await client.check_outbound("")


async def test_nothing_is_resolved_or_connected_to(
    start_orchestrator: StartOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision about a host must not tell that host of it."""
    running = await start_orchestrator(outbound=OUTBOUND | {"allow": ["*"]})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        port = listener.getsockname()[1]
        asked: list[object] = []
        monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where))

        for host in ("127.0.0.1", "unknown.example"):
            url = f"https://{host}:{port}/"
            answer = await running.policy.CheckOutbound(pb.CheckOutboundRequest(url=url))
            assert answer.allowed

        with pytest.raises(BlockingIOError):
            listener.accept()
        assert asked == []


async def test_without_the_switch_everything_is_denied(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The default, and whatever is allowed."""
    running = await start_orchestrator(outbound={"allow": ["*"]})

    answer = await running.policy.CheckOutbound(pb.CheckOutboundRequest(url="https://h/"))

    assert (answer.allowed, answer.rule) == (False, "outbound.enabled")


async def test_an_unknown_policy_does_not_start() -> None:
    """A server without the policy that was asked for would decide by another one."""
    tables = {"listen": "127.0.0.1:0", "store": {"kind": "memory"}, "outbound": {"policy": "ours"}}
    server = OrchestratorServer(Config.model_validate(tables))

    with pytest.raises(CannotStartError, match=r"no policy ours is installed; use patterns"):
        await server.start()
    await server.stop()
