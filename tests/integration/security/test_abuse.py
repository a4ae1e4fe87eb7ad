"""What hostile callers get, what it costs, and that others notice nothing. AUTH-1001.

Both services run as processes of their own; docs/security.md shows the same attacks and answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import grpc
import pytest

from tests.integration.security import attacks, http_attacks
from tests.integration.security.attacks import ATTACKS, Attack, Target
from tests.integration.security.http_attacks import HTTP_ATTACKS, HttpAttack
from tests.integration.security.processes import Service, orchestrator, pool_manager
from tests.integration.security.raw_http2 import CLOSED, connected

WAIT_S = 20.0
JOBS = "/llamaorch.orchestrator.v1.OrchestratorService/"
POOLS = "/llamaorch.orchestrator.v1.PoolAdminService/"
HOST = "/llamaorch.pool.v1.PoolManagerService/"
DOCUMENT = Path(__file__).parents[3] / "docs" / "security.md"


SERVICES = ("orchestratord", "pool-managerd")
# Of a host's inspection no call takes a stream of requests.
CASES = [
    (name, each) for name in SERVICES for each in ATTACKS if name == SERVICES[0] or not each.talks
]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """A process of each for all attacks: what one of them leaves behind, the next ones meet."""
    folder = tmp_path_factory.mktemp("services")
    with orchestrator(folder / "o") as one, pool_manager(folder / "p") as other:
        yield dict(zip(SERVICES, (one, other), strict=True))
        assert one.alive()
        assert other.alive()


def target_of(name: str, service: Service) -> Target:
    """What there is to attack."""
    if name == "orchestratord":
        return Target(
            JOBS + "GetOverview", JOBS + "Exchange", POOLS + "WatchPools", service.metadata
        )
    return Target(HOST + "GetSnapshots", "", HOST + "WatchSnapshots", service.metadata)


async def beside(
    attack: Awaitable[set[str]], bystander: Callable[[], Awaitable[object]]
) -> set[str]:
    """What an attack gets, while a bystander makes one call after the other, and one after it."""
    attacking = asyncio.ensure_future(attack)
    calls = 0
    while not attacking.done() or not calls:
        await bystander()
        calls += 1
    await bystander()
    return await attacking


@pytest.mark.parametrize(
    ("name", "attack"),
    CASES,
    ids=[f"{name}-{attack.run.__name__}" for name, attack in CASES],
)
async def test_a_hostile_caller_gets_a_clear_answer_and_others_notice_nothing(
    services: dict[str, Service], name: str, attack: Attack
) -> None:
    """AUTH-1001: a bystander's calls go on, on a connection opened before; memory is bounded."""
    service = services[name]
    target = target_of(name, service)
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(service.address))
        ask = channel.unary_unary(target.unary)

        async def bystander() -> None:
            await ask(b"", metadata=target.token, timeout=WAIT_S)

        await bystander()
        growth = stack.enter_context(service.growth())
        raws = [
            await stack.enter_async_context(connected(service.address))
            for _ in range(attack.connections)
        ]
        answer = await beside(attack.run(raws, target), bystander)

    assert answer
    assert {_ended(each) for each in answer} <= set(attack.gets)
    assert growth.mib <= attacks.GROWTH_MIB_MAX
    assert service.alive()


def _ended(answer: str) -> str:
    """Whether the server's farewell is read before the end of the connection is chance."""
    return CLOSED if answer.startswith("GOAWAY") and answer != attacks.CALM else answer


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("attack", HTTP_ATTACKS, ids=lambda attack: attack.name)
async def test_a_hostile_reader_of_metrics_gets_a_clear_answer_and_others_notice_nothing(
    services: dict[str, Service], name: str, attack: HttpAttack
) -> None:
    """ORCH-3035: of both services; a scrape beside it is answered, memory is bounded."""
    service = services[name]
    async with aiohttp.ClientSession() as session:

        async def bystander() -> None:
            url = f"http://127.0.0.1:{service.metrics_port}/metrics"
            async with asyncio.timeout(WAIT_S), session.get(url) as answer:
                assert answer.status == 200
                await answer.read()

        with service.growth() as growth:
            answer = await beside(_http(service.metrics_port, attack.data), bystander)

    assert answer <= set(attack.gets)
    assert growth.mib <= http_attacks.GROWTH_MIB_MAX


async def _http(port: int, data: bytes) -> set[str]:
    """The status with which bytes are met, or that the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.create_task(_send(writer, data))
    try:
        async with asyncio.timeout(WAIT_S):
            line = await reader.readline()
    except ConnectionError:
        line = b""
    finally:
        sending.cancel()
        writer.transport.abort()
    return {line.split()[1].decode() if line else http_attacks.CUT}


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), 65_536):
        writer.write(data[start : start + 65_536])
        try:
            await writer.drain()
        except ConnectionError:
            return


def _rows(entries: list[tuple[str, str]]) -> str:
    return "\n".join(f"| {sent} | {got} |" for sent, got in entries)


def _shown() -> dict[str, str]:
    """The tables of the document, by the name of their place."""
    named = attacks.CALLED
    http2 = [(each.sent, ", or ".join(named[got] for got in each.gets)) for each in ATTACKS]
    http_named = http_attacks.CALLED
    http = [(e.sent, ", or ".join(http_named[got] for got in e.gets)) for e in HTTP_ATTACKS]
    return {"gRPC ports": _rows(http2), "HTTP ports": _rows(http)}


@pytest.mark.parametrize("place", _shown(), ids=["grpc", "http"])
def test_the_document_shows_the_attacks_and_answers_that_the_tests_run(place: str) -> None:
    """A row is added to the document as it is printed here."""
    text = DOCUMENT.read_text(encoding="utf-8")

    assert f"| sent to the {place} | what it got |\n|---|---|\n{_shown()[place]}\n\n" in text


def test_the_document_names_the_bounds_of_memory() -> None:
    """Of both services, at the peak of each attack."""
    text = DOCUMENT.read_text(encoding="utf-8")
    grpc_mib, http_mib = attacks.GROWTH_MIB_MAX, http_attacks.GROWTH_MIB_MAX

    assert f"at most {grpc_mib} MiB, and {http_mib} at the HTTP ports" in " ".join(text.split())
