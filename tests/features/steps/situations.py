"""How each error comes about. A situation returns what the client was told in the end."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from llamaorch_client import ErrorDetail, Failed, LlamaOrchError
from llamaorch_client.errors import from_rpc_error
from orchestrator_core.store.memory import CommitFault, MemoryStore
from tests.features.service import MODEL
from tests.features.steps.catalog import registers, retires, updates, updates_old
from tests.features.steps.jobs import TAKES_ITS_TIME
from tests.features.steps.keeping import asks_for, damages, deletes_artifact, job_with_input, puts
from tests.features.steps.output import comes_back_wrong, has_read, loses_connection, reads
from tests.features.steps.wishes import job
from tests.features.world import World

ENQUEUE = "/llamaorch.orchestrator.v1.OrchestratorService/Enqueue"
Situation = Callable[[World], Awaitable[ErrorDetail]]
SITUATIONS: dict[str, Situation] = {}


def situation(text: str) -> Callable[[Situation], Situation]:
    """Names a situation as the feature does."""

    def add(happens: Situation) -> Situation:
        SITUATIONS[text] = happens
        return happens

    return add


async def service(world: World, **tables: Any) -> None:
    """A service with one pool of one slot."""
    await bare(world, **tables)
    await world.service.add_host("host-1", {"pool_id": "gpu", "slots": 1})


async def bare(world: World, **tables: Any) -> None:
    """A service without any pool."""
    world.service.tables.update(tables)
    await world.service.start()


async def runs_slowly(world: World, name: str = "long") -> None:
    """A job holds the only slot."""
    asked = await world.ask(name, job(TAKES_ITS_TIME))
    reader = asked.follow()
    await reader.until(lambda: bool(reader.text))


async def refused(world: World, *rows: list[str]) -> ErrorDetail:
    """What the client is told of a job that is not accepted."""
    asked = await world.ask("refused", job([list(row) for row in rows]))
    return told(asked.refusal)


async def failed(world: World, *rows: list[str]) -> ErrorDetail:
    """The error that an accepted job ends with."""
    asked = await world.ask("failed", job([list(row) for row in rows]))
    reader = asked.follow()
    await reader.ended()
    last = reader.events[-1]
    assert isinstance(last, Failed), last
    return last.error


def told(error: LlamaOrchError | None) -> ErrorDetail:
    """Everything that an error says."""
    assert error is not None, "nothing was refused"
    return error.detail


# --- too much at once


@situation("the queue is full")
async def _full(world: World) -> ErrorDetail:
    await service(world, queue={"capacity": 1})
    await runs_slowly(world)
    await world.ask("next", job())
    return await refused(world)


@situation("a client asks more often than it may")
async def _throttled(world: World) -> ErrorDetail:
    await service(world, throttle={"requests_per_min": 1})
    await world.ask("first", job())
    return await refused(world)


@situation("no slot is free where nobody waits")
async def _fail_fast(world: World) -> ErrorDetail:
    await service(world, queue={"policy": "fail-fast"})
    await runs_slowly(world)
    return await refused(world)


@situation("the budget of a session is spent")
async def _spent(world: World) -> ErrorDetail:
    await service(world)
    session = ["session", "chat"]
    first = await world.ask("first", job([session, ["session budget of tokens", "20"]]))
    await first.follow().ended()
    return await refused(world, session)


@situation("a waiting job gives way to a newer one")
async def _dropped(world: World) -> ErrorDetail:
    await service(world, queue={"capacity": 1, "policy": "drop-lru"})
    await runs_slowly(world)
    victim = await world.ask("victim", job())
    await world.ask("newer", job())
    reader = victim.follow()
    await reader.ended()
    last = reader.events[-1]
    assert isinstance(last, Failed)
    return last.error


# --- the request cannot be served


@situation("a field has a value that it cannot have")
async def _bad_field(world: World) -> ErrorDetail:
    await service(world)
    return await refused(world, ["temperature", "-1"])


@situation("the request cannot be read")
async def _unreadable(world: World) -> ErrorDetail:
    await service(world)
    async with grpc.aio.insecure_channel(world.service.address) as channel:
        try:
            await channel.unary_unary(ENQUEUE)(b"\xff\xff\xff")
        except grpc.aio.AioRpcError as error:
            return told(from_rpc_error(error, ""))
    raise AssertionError("what cannot be read was answered")


@situation("nobody has the model")
async def _no_model(world: World) -> ErrorDetail:
    await service(world)
    return await refused(world, ["model", "none-such"])


@situation("nobody runs the engine")
async def _no_engine(world: World) -> ErrorDetail:
    await service(world)
    return await refused(world, ["engine", "none-such"])


@situation("nobody has the devices")
async def _no_devices(world: World) -> ErrorDetail:
    await service(world)
    return await refused(world, ["memory", str(1 << 60)])


@situation("a request id comes back with another job")
async def _duplicate(world: World) -> ErrorDetail:
    await service(world)
    await world.ask("first", job([["request id", "r-1"]]))
    return await refused(world, ["request id", "r-1"], ["seed", "8"])


@situation("an artifact is deleted that a job still needs")
async def _in_use(world: World) -> ErrorDetail:
    await service(world)
    await puts(world, "input", "book", "Tell me all of it.")
    await job_with_input(world, "story", "book")
    await deletes_artifact(world, "book")
    return told(world.refusal)


@situation("the content of an artifact was damaged on the disk")
async def _damaged(world: World) -> ErrorDetail:
    await bare(world)
    await puts(world, "plan", "plan", "first this, then that")
    damages(world)
    await asks_for(world, "plan")
    return told(world.refusal)


@situation("nobody knows the job")
async def _unknown(world: World) -> ErrorDetail:
    await service(world)
    await world.attempt((await world.client()).get_job("none-such"))
    return told(world.refusal)


@situation("a reader shows a text that was never sent")
async def _wrong_text(world: World) -> ErrorDetail:
    await service(world)
    await world.ask("story", job(TAKES_ITS_TIME))
    await reads(world, "ann", "story")
    await has_read(world, "ann", 1)
    await loses_connection(world, "ann")
    await comes_back_wrong(world, "ann", "story")
    return told(world.refusal)


@situation("a model was retired")
async def _retired(world: World) -> ErrorDetail:
    await service(world)
    await registers(world, MODEL, [["alias", "chat"]])
    await retires(world, MODEL, "tiny-2", "no grace")
    return await refused(world)


@situation("the catalog alone counts, and has no such model")
async def _unknown_model(world: World) -> ErrorDetail:
    await service(world, catalog={"required": True})
    return await refused(world)


@situation("a model is deleted that jobs still need")
async def _model_in_use(world: World) -> ErrorDetail:
    await service(world)
    await registers(world, MODEL, [["alias", "chat"]])
    await runs_slowly(world)
    await world.attempt((await world.client()).catalog.delete(MODEL))
    return told(world.refusal)


@situation("somebody else has changed the model meanwhile")
async def _conflict(world: World) -> ErrorDetail:
    await bare(world)
    await registers(world, MODEL, [["alias", "chat"]])
    await updates(world, MODEL, [["alias", "assistant"]])
    await updates_old(world, 1, MODEL)
    return told(world.refusal)


# --- the service cannot serve now


@situation("no pool is registered")
async def _no_pool(world: World) -> ErrorDetail:
    await bare(world)
    return await refused(world)


@situation("no pool is ready where nobody waits")
async def _unready(world: World) -> ErrorDetail:
    await service(world, queue={"policy": "fail-fast"})
    await (await world.client()).drain_pool("gpu", timeout_s=60)
    return await refused(world)


@situation("the journal cannot be written")
async def _no_journal(world: World) -> ErrorDetail:
    broken = False

    def faults(_number: int, _batch: object) -> CommitFault:
        return CommitFault.UNAVAILABLE if broken else CommitFault.NONE

    world.service.store = MemoryStore(faults)
    await service(world)
    broken = True
    return await refused(world)


# --- the job was accepted, and did not end well


@situation("every engine that could serve it died")
async def _exhausted(world: World) -> ErrorDetail:
    await service(world)
    return await failed(world, ["engine dies after words", "0"])


@situation("its deadline came before its end")
async def _deadline(world: World) -> ErrorDetail:
    await service(world)
    return await failed(world, ["pause between words", "60000"], ["deadline in seconds", "0.2"])


@situation("it waited longer than it wanted to")
async def _waited(world: World) -> ErrorDetail:
    await service(world)
    await runs_slowly(world)
    return await failed(world, ["longest wait in ms", "1"])


@situation("it took longer than it may")
async def _too_long(world: World) -> ErrorDetail:
    await service(world, jobs={"wall_timeout_ms": 50})
    return await failed(world, ["pause between words", "60000"])


@situation("its engine died with half of the words delivered")
async def _reset(world: World) -> ErrorDetail:
    await service(world)
    return await failed(world, ["engine dies after words", "8"], ["on failure", "fail"])


@situation("its engine failed")
async def _engine_failed(world: World) -> ErrorDetail:
    await service(world)
    return await failed(world, ["fails after words", "1"])


@situation("its engine ran out of memory")
async def _out_of_memory(world: World) -> ErrorDetail:
    await service(world)
    failure = ["fails with", "device_out_of_memory"]
    return await failed(world, ["fails after words", "1"], failure)


# --- who asks


@situation("somebody asks without a token")
async def _nobody(world: World) -> ErrorDetail:
    world.service.know("ann", "client")
    await service(world)
    return await refused(world)


@situation("somebody asks for what is not theirs to ask")
async def _not_theirs(world: World) -> ErrorDetail:
    world.service.know("ann", "client")
    await service(world)
    client = await world.client("ann")
    await world.attempt(client.drain_pool("gpu"))
    return told(world.refusal)
