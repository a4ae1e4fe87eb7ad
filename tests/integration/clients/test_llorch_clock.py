"""`llorch` on a machine whose clock is off: spans are by the server's."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from llamaorch.orchestrator.v1 import job_pb2, session_service_pb2, session_service_pb2_grpc
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch_client import AsyncClient
from llamaorch_client.cli import sessions
from llamaorch_client.cli.arguments import parse
from llamaorch_client.cli.output import Output
from tests.integration.clients import scripted_server as wire
from tests.integration.clients.llorch import within
from tests.integration.clients.scripted_server import ScriptedServer

# Years from this machine's.
SERVER_NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
MADE = "019a0c3e-9d7a-7c2b-8f00-00000000000"


def instant(at: datetime) -> Timestamp:
    """On the wire."""
    message = Timestamp()
    message.FromDatetime(at)
    return message


@pytest.fixture
def elsewhen(server: ScriptedServer) -> ScriptedServer:
    """A server with that clock, and two jobs that were given 90 seconds ago."""
    accepted = instant(SERVER_NOW - timedelta(seconds=90))
    jobs = [wire.job(f"{MADE}{n}", job_pb2.JOB_STATE_QUEUED, accepted_at=accepted) for n in (1, 2)]
    server.on("ListJobs", pb.ListJobsResponse(jobs=jobs))
    return server.on("GetOverview", pb.GetOverviewResponse(observed_at=instant(SERVER_NOW)))


async def test_jobs_are_as_old_as_the_server_says(elsewhen: ScriptedServer) -> None:
    """Nobody took years for them."""
    told = await within(elsewhen.address, "jobs")

    assert [line.split()[-2:] for line in told.stdout.splitlines()[1:]] == [["90.0", "s"]] * 2


async def test_ids_that_several_jobs_have_tell_when_they_were_given(
    elsewhen: ScriptedServer,
) -> None:
    """It is how a person picks the one that is meant."""
    elsewhen.on("Cancel", wire.Failure(wire.grpc.StatusCode.NOT_FOUND, "NOT_FOUND"))

    told = await within(elsewhen.address, "cancel", MADE[:8])

    assert told.stderr.count("given 90.0 s ago") == 2


async def test_a_deadline_counts_from_the_servers_now(elsewhen: ScriptedServer) -> None:
    """Else the job would be over before it began, or never be late."""
    elsewhen.on("Enqueue", wire.accepted())

    words = ("run", "--model", "tiny", "--detach", "--deadline-s", "60", "Hi")
    told = await within(elsewhen.address, *words)

    assert told.code == 0
    deadline = elsewhen.made("Enqueue")[0].request.spec.deadline.ToDatetime(UTC)
    assert deadline == SERVER_NOW + timedelta(seconds=60)


async def test_without_the_servers_clock_this_machines_is_taken(server: ScriptedServer) -> None:
    """An older server does not tell: nothing fails for it."""
    accepted = instant(datetime.now(UTC) - timedelta(hours=5, minutes=30))
    server.on("ListJobs", pb.ListJobsResponse(jobs=[wire.job(accepted_at=accepted)]))

    told = await within(server.address, "jobs")

    assert told.code == 0
    assert told.stdout.splitlines()[1].split()[-2:] == ["5h", "30m"]


class Sessions(session_service_pb2_grpc.SessionServiceServicer):
    """One session, which ends in ten minutes."""

    async def GetSession(self, _: object, __: object) -> object:  # noqa: N802 - the stub's name
        """That one."""
        until = instant(SERVER_NOW + timedelta(minutes=10))
        return session_service_pb2.GetSessionResponse(
            session=session_service_pb2.Session(session_id="s", expires_at=until)
        )


async def test_a_session_ends_when_the_server_says(
    elsewhen: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where this machine believes that it is over."""
    server = wire.aio.server()
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(Sessions(), server)
    wire.orchestrator_service_pb2_grpc.add_OrchestratorServiceServicer_to_server(elsewhen, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    async with AsyncClient(address) as client:
        await sessions.sessions(parse(["sessions", "show", "s"], {}), Output(False), client)
    await server.stop(None)

    assert "ends in 10m 00s" in capsys.readouterr().out
