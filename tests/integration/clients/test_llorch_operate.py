"""The `llorch` command: drain, undrain, reload against a scripted server. OC-CTRL-2002, 2003."""

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from orchestrator_core.core.draining import POOL_RESOURCE
from tests.integration.clients.llorch import llorch
from tests.integration.clients.scripted_server import Failure, Hang, ScriptedServer


def drained(running: int) -> pb.Pool:
    """A pool that drains, with so many attempts left."""
    drain = pb.PoolDrain(until=Timestamp(seconds=1_000), running_attempts=running)
    return pb.Pool(pool_id="gpu-a", state="DRAINING", drain=drain)


async def test_drain_sends_the_deadline_and_tells_what_still_runs(server: ScriptedServer) -> None:
    """Without --wait it returns at once; without a deadline the server's own counts."""
    server.on("DrainPool", pb.DrainPoolResponse(pool=drained(3)))

    outcome = await llorch(server.address, "drain", "gpu-a", "--deadline", "5m")
    plain = await llorch(server.address, "--json", "drain", "gpu-a")

    first, second = (call.request for call in server.made("DrainPool"))
    assert (first.pool_id, first.timeout.seconds, first.undo) == ("gpu-a", 300, False)
    assert not second.HasField("timeout")
    assert outcome.code == 0
    assert (
        "gpu-a drains: 3 jobs still run there, and no other begins; what runs at" in outcome.stdout
    )
    assert plain.records()[0]["pool"]["drain"]["running_attempts"] == 3


async def test_drain_waits_until_nothing_runs(server: ScriptedServer) -> None:
    """It watches the pool, and ends with 1 when the drain is undone or the pool gone."""
    server.on("DrainPool", pb.DrainPoolResponse(pool=drained(3)))
    states = [[pb.WatchPoolsResponse(pools=[drained(left)])] for left in (3, 1, 0)]
    undone = [pb.WatchPoolsResponse(pools=[pb.Pool(pool_id="gpu-a", state="READY")])]
    server.on("WatchPools", [*states, Hang()])

    waited = await llorch(server.address, "drain", "gpu-a", "--wait")
    server.on("WatchPools", [states[0], undone, Hang()])
    ended = await llorch(server.address, "drain", "gpu-a", "--wait")
    server.on("WatchPools", [[pb.WatchPoolsResponse()], Hang()])
    gone = await llorch(server.address, "drain", "gpu-a", "--wait")

    assert (waited.code, waited.stdout) == (
        0,
        "gpu-a drains: nothing runs there, and nothing new will\n",
    )
    assert (ended.code, "somebody ended the drain" in ended.stderr) == (1, True)
    assert (gone.code, "is gone" in gone.stderr) == (1, True)


@pytest.mark.parametrize("command", ["drain", "undrain", "reload"])
async def test_an_unknown_pool_is_answered_with_those_that_there_are(
    server: ScriptedServer, command: str
) -> None:
    """The nearest first; jobs have nothing to do with it."""
    unknown = Failure(
        grpc.StatusCode.NOT_FOUND,
        "NOT_FOUND",
        "no pool 'gpub' is registered",
        {"resource_type": POOL_RESOURCE},
    )
    pools = [pb.Pool(pool_id=name) for name in ("cpu", "gpu-a", "gpu-b")]
    server.on("DrainPool", unknown).on("ReloadPool", unknown)
    server.on("ListPools", pb.ListPoolsResponse(pools=pools))

    outcome = await llorch(server.address, command, "gpub")

    assert outcome.code == 2
    assert outcome.stderr == (
        "llorch: not found: no pool 'gpub' is registered; those that are: gpu-b, gpu-a, cpu; "
        "`llorch pools` lists what the server knows\n"
    )


async def test_undrain_says_so(server: ScriptedServer) -> None:
    """The same call with `undo`."""
    server.on("DrainPool", pb.DrainPoolResponse(pool=pb.Pool(pool_id="gpu-a", state="READY")))

    outcome = await llorch(server.address, "undrain", "gpu-a")

    assert server.made("DrainPool")[0].request.undo
    assert (outcome.code, outcome.stdout) == (0, "gpu-a takes work again\n")


FORMER = (
    "rolled back, the pool serves its former model: broken; mend that, then "
    "`llorch reload gpu-a --model m.gguf`"
)


@pytest.mark.parametrize(
    ("outcome", "code", "says"),
    [
        (pb.RELOAD_OUTCOME_DONE, 0, "gpu-a serves tiny sha256:1"),
        (pb.RELOAD_OUTCOME_ROLLED_BACK, 1, FORMER),
    ],
)
async def test_reload_tells_what_became_of_it(
    server: ScriptedServer, outcome: pb.ReloadOutcome.ValueType, code: int, says: str
) -> None:
    """0 only when the pool serves what was asked for."""
    pool = pb.Pool(pool_id="gpu-a", model_id="tiny", model_digest="sha256:1")
    detail = "" if code == 0 else "broken"
    server.on("ReloadPool", pb.ReloadPoolResponse(pool=pool, outcome=outcome, detail=detail))

    told = await llorch(server.address, "reload", "gpu-a", "--model", "m.gguf", "--deadline", "90s")

    request = server.made("ReloadPool")[0].request
    assert (request.model_ref, request.timeout.seconds) == ("m.gguf", 90)
    assert told.code == code
    assert says in told.stdout + told.stderr


async def test_a_reload_is_not_repeated(server: ScriptedServer) -> None:
    """A call that broke may have been carried out: a second one would reload again."""
    server.on("ReloadPool", Failure(grpc.StatusCode.UNAVAILABLE, message="cut"))

    told = await llorch(server.address, "reload", "gpu-a")

    assert told.code == 3
    assert len(server.made("ReloadPool")) == 1
