"""A job belongs to the token that gave it: on every call that names or lists jobs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc
import pytest
from grpc_status.rpc_status import from_call

from llamaorch.orchestrator.v1 import job_pb2, session_service_pb2, session_service_pb2_grpc
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from llamaorch.pool.v1 import snapshot_pb2
from tests.integration.orchestrator.scripted_host import ScriptedHost, snapshot
from tests.integration.security.conftest import Guarded, StartGuarded

WAIT_S = 10.0
BOB = {"bob": {"role": "client"}}


@dataclass
class House:
    """A server with a job of `client` that runs, and others who look at it."""

    guarded: Guarded
    stub: jobs_grpc.OrchestratorServiceStub
    sessions: session_service_pb2_grpc.SessionServiceStub
    job_id: str

    def as_(self, name: str) -> tuple[tuple[str, str], ...]:
        """The metadata of somebody."""
        return self.guarded.metadata(name)

    async def enqueue(self, name: str, **fields: object) -> str:
        """Gives a job in somebody's name; returns its id."""
        spec = job_pb2.JobSpec(
            model_id="tiny",
            input=job_pb2.JobInput(text="hello"),
            **fields,  # type: ignore[arg-type]
        )
        request = pb.EnqueueRequest(spec=spec)
        return (await self.stub.Enqueue(request, metadata=self.as_(name))).job_id

    async def exchange(self, name: str, *requests: pb.ExchangeRequest) -> list[pb.ExchangeResult]:
        """The results of requests on one stream."""
        stream = self.stub.Exchange(metadata=self.as_(name))
        results: list[pb.ExchangeResult] = []
        async with asyncio.timeout(WAIT_S):
            for request in requests:
                await stream.write(request)
            while len(results) < len(requests):
                results.extend((await stream.read()).results)
        stream.cancel()
        return results


StartHouse = Callable[..., Awaitable[House]]


@pytest.fixture
async def start_house(start_guarded: StartGuarded) -> AsyncIterator[StartHouse]:
    """Starts servers with the clients `client` and `bob`, and a job of `client` that waits."""
    channels: list[grpc.aio.Channel] = []

    async def start(jobs_visible_to: str = "owner") -> House:
        guarded = await start_guarded(BOB, jobs_visible_to)
        channels.append(channel := grpc.aio.insecure_channel(guarded.address))
        host = ScriptedHost(channel, "host-1", "boot-1", guarded.metadata("pool"))
        await host.register(snapshot(state=snapshot_pb2.POOL_STATE_STARTING))
        house = House(
            guarded,
            jobs_grpc.OrchestratorServiceStub(channel),
            session_service_pb2_grpc.SessionServiceStub(channel),
            "",
        )
        house.job_id = await house.enqueue("client", session_id="talk")
        return house

    yield start
    for channel in channels:
        await channel.close()


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, str]:
    """The code, text and named resource with which a call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = from_call(caught.value)
    assert status is not None
    return caught.value.code(), caught.value.details() or "", str(len(status.details))


async def first(stream: "grpc.aio.UnaryStreamCall[object, object]") -> object:
    """The first message of a stream."""
    async with asyncio.timeout(WAIT_S):
        message = await stream.read()
    assert message is not grpc.aio.EOF, await stream.code()
    return message


def calls(house: House, name: str, job_id: str) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every unary way to a job."""
    stub, who = house.stub, house.as_(name)
    get, explain = pb.GetJobRequest(job_id=job_id), pb.ExplainJobRequest(job_id=job_id)
    follow, stop = pb.StreamTokensRequest(job_id=job_id), pb.CancelRequest(job_id=job_id)
    return {
        "GetJob": lambda: stub.GetJob(get, metadata=who),
        "ExplainJob": lambda: stub.ExplainJob(explain, metadata=who),
        "StreamTokens": lambda: first(stub.StreamTokens(follow, metadata=who)),
        "Cancel": lambda: stub.Cancel(stop, metadata=who),
    }


async def test_a_job_of_another_client_is_answered_like_one_that_is_not_there(
    start_house: StartHouse,
) -> None:
    """AUTH-1007: on every call; nothing but the id that was asked for differs."""
    house = await start_house()

    for name, call in calls(house, "bob", house.job_id).items():
        foreign = await refusal(call())
        unknown = await refusal(calls(house, "bob", "no-such-job")[name]())

        assert foreign[0] is grpc.StatusCode.NOT_FOUND, name
        assert foreign[1].replace(house.job_id, "no-such-job") == unknown[1], name
        assert foreign[2] == unknown[2]

    own = await house.stub.GetJob(
        pb.GetJobRequest(job_id=house.job_id), metadata=house.as_("client")
    )
    assert own.job.state == job_pb2.JOB_STATE_QUEUED


async def test_an_exchange_neither_follows_nor_cancels_a_job_of_another_client(
    start_house: StartHouse,
) -> None:
    """AUTH-1007: each request gets its own refusal, and the stream goes on."""
    house = await start_house()
    follow = pb.ExchangeSubscribe(job_id=house.job_id)
    stop = pb.ExchangeCancel(job_id=house.job_id)
    requests = (
        pb.ExchangeRequest(correlation_id=1, subscribe=follow),
        pb.ExchangeRequest(correlation_id=2, cancel=stop),
    )

    foreign = await house.exchange("bob", *requests)
    own = await house.exchange("client", *requests)

    assert {each.error.code for each in foreign} == {grpc.StatusCode.NOT_FOUND.value[0]}
    assert {each.WhichOneof("result") for each in own} == {"subscribed_job_id", "cancelled"}


async def test_lists_show_a_client_its_own_jobs_and_an_admin_all(start_house: StartHouse) -> None:
    """AUTH-1007: rows are one's own, the counts of the overview are everybody's."""
    house = await start_house()
    mine = await house.enqueue("bob")

    seen = {}
    for name in ("client", "bob", "admin"):
        listed = await house.stub.ListJobs(pb.ListJobsRequest(), metadata=house.as_(name))
        told = await house.stub.GetOverview(pb.GetOverviewRequest(), metadata=house.as_(name))
        rows = {job.job_id for queue in told.queues for job in queue.next}
        rows |= {job.job_id for job in told.running}
        waiting = sum(queue.waiting for queue in told.queues) + told.running_total
        seen[name] = ({job.job_id for job in listed.jobs}, rows, waiting)

    assert seen == {
        "client": ({house.job_id}, {house.job_id}, 2),
        "bob": ({mine}, {mine}, 2),
        "admin": ({mine, house.job_id}, {mine, house.job_id}, 2),
    }


async def test_an_admin_sees_follows_and_cancels_the_jobs_of_all(start_house: StartHouse) -> None:
    """AUTH-1007: somebody has to be able to."""
    house = await start_house()

    for call in calls(house, "admin", house.job_id).values():
        await call()


async def test_a_shared_house_shows_every_client_every_job(start_house: StartHouse) -> None:
    """AUTH-1007: `auth.jobs_visible_to` opens jobs, and leaves sessions private."""
    house = await start_house(jobs_visible_to="all")

    for call in calls(house, "bob", house.job_id).values():
        await call()
    listed = await house.sessions.ListSessions(
        session_service_pb2.ListSessionsRequest(), metadata=house.as_("bob")
    )
    assert not listed.sessions


async def test_a_session_is_known_to_its_client_alone(start_house: StartHouse) -> None:
    """AUTH-1007, ORCH-3021: an equal id of another client is another session."""
    house = await start_house()
    get = session_service_pb2.GetSessionRequest(session_id="talk")
    delete = session_service_pb2.DeleteSessionRequest(session_id="talk")

    for call in (
        house.sessions.GetSession(get, metadata=house.as_("bob")),
        house.sessions.DeleteSession(delete, metadata=house.as_("bob")),
    ):
        assert (await refusal(call))[0] is grpc.StatusCode.NOT_FOUND
    await house.enqueue("bob", session_id="talk")
    told = [
        (await house.sessions.GetSession(get, metadata=house.as_(name))).session
        for name in ("client", "bob")
    ]

    assert [session.turns for session in told] == [1, 1]
    assert told[0].job_ids != told[1].job_ids


async def test_an_id_that_another_client_took_is_refused_and_not_answered_for(
    start_house: StartHouse,
) -> None:
    """AUTH-1007: the same body under the same id is no way to the job of another."""
    house = await start_house()
    await house.enqueue("client", job_id="taken")

    code, text, _ = await refusal(house.enqueue("bob", job_id="taken"))

    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert "choose a new one" in text
