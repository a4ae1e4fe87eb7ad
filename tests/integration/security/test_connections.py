"""Connections are bounded in number, and those that do nothing make room."""

import asyncio

import grpc
import pytest

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2_grpc as jobs_grpc
from orchestrator_core import grpc_options
from tests.integration.security.conftest import Guarded, StartGuarded
from tests.integration.security.raw_http2 import connected

WAIT_S = 15.0


def with_options(monkeypatch: pytest.MonkeyPatch, **changed: int) -> None:
    """Lets servers that start from here on have other options of gRPC."""
    options = dict(grpc_options.SERVER_OPTIONS)
    names = {f"grpc.{name}": value for name, value in changed.items()}
    assert names.keys() <= options.keys()
    monkeypatch.setattr(grpc_options, "SERVER_OPTIONS", tuple((options | names).items()))


async def end(reader: asyncio.StreamReader) -> bytes:
    """Waits for the end of a connection; what came before it."""
    async with asyncio.timeout(WAIT_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def ask(guarded: Guarded) -> None:
    """A call on a connection of its own."""
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub = jobs_grpc.OrchestratorServiceStub(channel)
        who = guarded.metadata("client")
        await stub.GetOverview(jobs_pb2.GetOverviewRequest(), metadata=who, timeout=WAIT_S)


async def test_who_does_not_finish_the_handshake_is_closed(
    start_guarded: StartGuarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUTH-1002: those that say nothing, and those that say half of it."""
    with_options(monkeypatch, server_handshake_timeout_ms=200)
    guarded = await start_guarded()
    host, _, port = guarded.address.rpartition(":")

    opened = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    for _, writer in opened[:10]:
        writer.write(b"PRI * HT")
    for reader, writer in opened:
        await end(reader)
        writer.close()
    await ask(guarded)


async def test_who_has_no_call_open_for_long_is_closed(
    start_guarded: StartGuarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUTH-1002: politely, as a client may only have been idle."""
    with_options(monkeypatch, max_connection_idle_ms=200)
    guarded = await start_guarded()

    async with connected(guarded.address) as raw:
        assert await raw.end() == {"GOAWAY 2"} or raw.gone == "GOAWAY 0"


async def test_one_connection_too_many_is_closed_and_the_others_are_served(
    start_guarded: StartGuarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUTH-1002: they are open files, of which the journal needs some; who leaves makes room."""
    monkeypatch.setattr(grpc_options, "CONNECTIONS_MAX", 5)
    guarded = await start_guarded()
    host, _, port = guarded.address.rpartition(":")
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        stub = jobs_grpc.OrchestratorServiceStub(channel)
        who = guarded.metadata("client")
        await stub.GetOverview(jobs_pb2.GetOverviewRequest(), metadata=who)

        opened = [await asyncio.open_connection(host, int(port)) for _ in range(30)]
        ends = [asyncio.ensure_future(end(reader)) for reader, _ in opened]
        async with asyncio.timeout(WAIT_S):
            while sum(each.done() for each in ends) < len(opened) - 4:
                await asyncio.wait(
                    [each for each in ends if not each.done()],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        await stub.GetOverview(jobs_pb2.GetOverviewRequest(), metadata=who, timeout=WAIT_S)
        for _, writer in opened:
            writer.close()
        await asyncio.gather(*ends)
    await ask(guarded)


def test_connections_leave_files_for_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTH-1002: half of what the process may open, whatever the number."""
    for files, most in ((1_024, 512), (65_536, grpc_options.CONNECTIONS_MAX), (-1, 4_096)):
        monkeypatch.setattr(
            grpc_options.resource, "getrlimit", lambda _, files=files: (files, files)
        )

        assert grpc_options.connections_max() == most
