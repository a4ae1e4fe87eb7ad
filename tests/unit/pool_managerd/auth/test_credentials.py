"""Why there is no session with the orchestrator: what to change, in no words of gRPC's."""

import asyncio
import os
from pathlib import Path

import grpc
import pytest
from grpc import aio

from pool_managerd.auth.credentials import LinkCredentials, why_ended
from pool_managerd.config.schema import Config
from pool_managerd.errors import SessionLostError

POOL = {"pool_id": "p", "engine": {"kind": "mock"}}


def linked(**link: object) -> Config:
    """A host whose link is so."""
    return Config.model_validate({"pools": [POOL], "link": link})


async def test_a_file_of_the_link_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    """The try ends with a sentence, and the next one reads what is there by then."""
    path, credentials = tmp_path / "token", LinkCredentials()
    os.mkfifo(path)
    config = linked(token_file=str(path), connect_timeout_ms=20)
    tls = {"enabled": True, "ca": str(path)}

    with pytest.raises(SessionLostError, match=r"link\.tls\.ca: .*token was not read in link\."):
        await credentials.channel(linked(tls=tls, connect_timeout_ms=20), [])
    with pytest.raises(
        SessionLostError, match=r"link\.token_file: .*connect_timeout_ms = 20: look"
    ):
        await credentials.metadata(config)
    # Lets go the thread that waits for a writer.
    os.close(os.open(path, os.O_WRONLY))
    path.unlink()
    path.write_text("hi\n", encoding="ascii")

    patient = linked(token_file=str(path))
    assert await credentials.metadata(patient) == (("authorization", "Bearer hi"),)


async def test_the_link_within_a_machine_passes_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTH-1002: its token would leave the machine, and whoever runs the proxy would have it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server = aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = Config.model_validate({"pools": [POOL], "orchestrator": f"127.0.0.1:{port}"})

    channel = await LinkCredentials().channel(config, [])
    async with asyncio.timeout(20):
        await channel.channel_ready()
    await channel.close()
    await server.stop(None)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("Failed to connect to remote host: Connection refused", "nobody listens there: start"),
        ("Domain name not found", "there is no such host: look for a typing error in `orch"),
        ("Failed parsing HTTP/2", "what listens there does not speak gRPC: set `orchestrator`"),
        ("Hostname Verification Check failed.", "certificate is for another name: set link.tls."),
        ("Failed to create security handshaker.", "link.tls: one of its files holds no cert"),
    ],
)
def test_a_connection_that_fails_says_what_to_change(raw: str, told: str) -> None:
    """The setting is named; addresses of all kinds and codes are not."""
    text = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7070: {raw}"
    error = aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), details=text
    )

    said = why_ended(error)

    assert told in said
    assert "ipv4" not in said
