"""What hostile callers get, and that others notice nothing. docs/security.md has the table."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable

import grpc
import pytest

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from tests.integration.security.conftest import Guarded, StartGuarded
from tests.integration.security.raw_http2 import ENQUEUE, EXCHANGE, Raw, connected, framed

WAIT_S = 15.0
STREAMS = 500
# Status codes as they travel.
INVALID, EXHAUSTED, INTERNAL, UNAUTHENTICATED = "3", "8", "13", "16"

Attack = Callable[[Raw, tuple[tuple[str, str], ...]], Awaitable[set[str]]]


async def _one(raw: Raw, path: str, headers: tuple[tuple[str, str], ...], data: bytes) -> set[str]:
    stream = raw.open(path, *headers)
    await raw.flush()
    # What is larger than the window goes as far as it fits.
    for start in range(0, min(len(data), 60_000), 16_000):
        raw.h2.send_data(stream, data[start : start + 16_000])
    await raw.flush()
    return await raw.answers([stream])


async def rapid_reset(raw: Raw, _: object) -> set[str]:
    """Streams that are opened and reset at once."""
    for _number in range(2_000):
        raw.h2.reset_stream(raw.open(ENQUEUE))
        if _number % 100 == 0:
            await raw.flush()
    await raw.flush()
    return await raw.answers([raw.open(ENQUEUE)])


async def silent_streams(raw: Raw, _: object) -> set[str]:
    """500 calls without a token that never send their message."""
    streams = [raw.open(ENQUEUE) for _number in range(STREAMS)]
    await raw.flush()
    return await raw.answers(streams)


async def long_message(raw: Raw, token: tuple[tuple[str, str], ...]) -> set[str]:
    """A header that announces 2 GiB."""
    return await _one(raw, ENQUEUE, token, framed(b"x" * 100, length=1 << 31))


async def gzip_bomb(raw: Raw, token: tuple[tuple[str, str], ...]) -> set[str]:
    """32 MiB of zeros in 32 kB."""
    bomb = framed(gzip.compress(bytes(32 << 20)), flag=1)
    return await _one(raw, ENQUEUE, (*token, ("grpc-encoding", "gzip")), bomb)


async def no_gzip(raw: Raw, token: tuple[tuple[str, str], ...]) -> set[str]:
    """Says that it is compressed, and is not."""
    data = framed(b"not gzip", flag=1)
    return await _one(raw, ENQUEUE, (*token, ("grpc-encoding", "gzip")), data)


async def not_protobuf(raw: Raw, token: tuple[tuple[str, str], ...]) -> set[str]:
    """A message that is none, on a unary call."""
    return await _one(raw, ENQUEUE, token, framed(b"\xff" * 64))


async def not_protobuf_on_a_stream(raw: Raw, token: tuple[tuple[str, str], ...]) -> set[str]:
    """The same on an Exchange."""
    return await _one(raw, EXCHANGE, token, framed(b"\xff" * 64))


async def much_metadata(raw: Raw, token: tuple[tuple[str, str], ...]) -> set[str]:
    """200 kB of it."""
    many = [(f"x-{number}", "y" * 1_000) for number in range(200)]
    return await _one(raw, ENQUEUE, (*token, *many), b"")


async def long_token(raw: Raw, _: object) -> set[str]:
    """A token of 6,000 characters."""
    return await _one(raw, ENQUEUE, (("authorization", "Bearer " + "a" * 6_000),), b"")


async def two_tokens(raw: Raw, token: tuple[tuple[str, str], ...]) -> set[str]:
    """A good one, twice."""
    return await _one(raw, ENQUEUE, (*token, *token), b"")


async def pings(raw: Raw, _: object) -> set[str]:
    """10,000 PINGs."""
    for number in range(10_000):
        raw.h2.ping(number.to_bytes(8, "big"))
    await raw.flush()
    await raw.until(lambda: False)
    return {raw.gone}


async def noise(raw: Raw, _: object) -> set[str]:
    """Bytes that are no frames."""
    await raw.write(b"\xff" * 4_096)
    await raw.until(lambda: False)
    return {raw.gone}


ATTACKS: list[tuple[Attack, set[str]]] = [
    (rapid_reset, {UNAUTHENTICATED, "RST 7"}),
    (silent_streams, {UNAUTHENTICATED}),
    (long_message, {EXHAUSTED}),
    (gzip_bomb, {EXHAUSTED}),
    (no_gzip, {INTERNAL}),
    (not_protobuf, {INVALID}),
    (not_protobuf_on_a_stream, {INVALID}),
    (much_metadata, {EXHAUSTED}),
    (long_token, {UNAUTHENTICATED}),
    (two_tokens, {UNAUTHENTICATED}),
    (pings, {"GOAWAY 11"}),
    (noise, {"GOAWAY 1", "closed"}),
]


@pytest.mark.parametrize(("attack", "gets"), ATTACKS, ids=[a.__name__ for a, _ in ATTACKS])
async def test_a_hostile_caller_gets_a_clear_answer_and_others_notice_nothing(
    guarded: Guarded, attack: Attack, gets: set[str]
) -> None:
    """AUTH-1001: a bystander's calls go on during the attack, on a connection opened before it."""
    token = guarded.metadata("client")
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub = jobs_grpc.OrchestratorServiceStub(channel)
        await stub.GetOverview(jobs_pb2.GetOverviewRequest(), metadata=token)
        async with connected(guarded.address) as raw:
            attacking = asyncio.create_task(attack(raw, token))
            calls = 0
            while not attacking.done() or not calls:
                await stub.GetOverview(
                    jobs_pb2.GetOverviewRequest(), metadata=token, timeout=WAIT_S
                )
                calls += 1
            answer = await attacking
        await stub.GetOverview(jobs_pb2.GetOverviewRequest(), metadata=token, timeout=WAIT_S)

    assert answer
    assert answer <= gets


async def test_connections_that_never_finish_their_handshake_keep_nobody_out(
    start_guarded: StartGuarded,
) -> None:
    """AUTH-1002: 200 that say nothing, and 50 that say half a preface."""
    guarded = await start_guarded()
    host, _, port = guarded.address.rpartition(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(250)]
    for _, writer in idle[:50]:
        writer.write(b"PRI * HT")
    try:
        async with grpc.aio.insecure_channel(guarded.address) as channel:
            stub = jobs_grpc.OrchestratorServiceStub(channel)
            answer = await stub.GetOverview(
                jobs_pb2.GetOverviewRequest(), metadata=guarded.metadata("client"), timeout=WAIT_S
            )
    finally:
        for _, writer in idle:
            writer.close()

    assert answer.IsInitialized()
