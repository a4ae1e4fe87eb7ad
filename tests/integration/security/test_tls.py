"""TLS over real sockets: renewal, callers' certificates, and what is told of failures."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llamaorch_client import AsyncClient, ClientOptions, LlamaOrchError, UnavailableError
from llamaorch_client.channel import tls_credentials
from llamaorch_client.cli.failure import sentences
from llamaorch_client.options import RetryOptions
from orchestrator_core.config.schema import Config
from orchestrator_core.errors import CannotStartError
from orchestrator_core.server import OrchestratorServer
from pool_managerd.config.schema import Config as HostConfig
from pool_managerd.devices.cpu import CpuDevices
from pool_managerd.server import PoolManager
from tests.integration.security.certificates import Authority, Pair
from tests.integration.security.conftest import Guarded, StartGuarded
from tests.integration.security.processes import orchestrator

WAIT_S = 20.0


def options(
    guarded: Guarded, credentials: grpc.ChannelCredentials | None, role: str = "client"
) -> ClientOptions:
    """A client that gives up at once."""
    retry = RetryOptions(attempts_max=1)
    return ClientOptions(token=guarded.tokens[role], credentials=credentials, retry=retry)


async def why(address: str, given: ClientOptions) -> str:
    """What a person is told when a call fails; empty when it does not."""
    async with AsyncClient(address, options=given) as client:
        try:
            await client.capabilities()
        except UnavailableError as error:
            return sentences(error, address)[0]
    return ""


def tls(folder: Path, pair: Pair, **more: str) -> dict[str, str]:
    """The table of a server's files."""
    certificate, key = pair.write(folder, "server")
    return {"certificate": certificate, "key": key, **more}


async def test_a_call_that_cannot_open_a_connection_says_what_to_change(
    start_guarded: StartGuarded, tmp_path: Path
) -> None:
    """AUTH-1002: an unknown authority, no TLS where it is asked for, and the other way round."""
    authority, other = Authority(), Authority("others")
    guarded = await start_guarded(tls=tls(tmp_path, authority.issue("server")))
    plain = await start_guarded()
    trusting = tls_credentials(authority.certificate)

    assert await why(guarded.address, options(guarded, trusting)) == ""
    assert "--ca-file" in await why(
        guarded.address, options(guarded, tls_credentials(other.certificate))
    )
    assert "may ask for TLS" in await why(guarded.address, options(guarded, None))
    assert "does not speak TLS" in await why(plain.address, options(plain, trusting))


async def test_a_caller_without_tls_writes_nothing_into_the_log(tmp_path: Path) -> None:
    """The core of gRPC would, a line for each connection and none of them JSON. HME-030."""
    certificate, key = Authority().issue("server").write(tmp_path, "server")
    more = f"[tls]\ncertificate = {json.dumps(certificate)}\nkey = {json.dumps(key)}\n"
    with orchestrator(tmp_path / "service", more=more) as service:
        host, _, port = service.address.rpartition(":")
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            async with asyncio.timeout(WAIT_S):
                await reader.read()
            writer.close()

    lines = service.log.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("{")] == []
    assert json.loads(lines[-1])["event"] == "stopped"


async def test_an_expired_certificate_is_called_expired(
    start_guarded: StartGuarded, tmp_path: Path
) -> None:
    """AUTH-1002: who renews it has to know that this is it."""
    authority = Authority()
    guarded = await start_guarded(tls=tls(tmp_path, authority.issue("server", days=-1)))

    told = await why(guarded.address, options(guarded, tls_credentials(authority.certificate)))

    assert "has expired" in told


async def test_only_callers_with_a_certificate_get_in_where_it_is_asked_for(
    start_guarded: StartGuarded, tmp_path: Path
) -> None:
    """AUTH-1002: mTLS, beside the token and not instead of it."""
    authority, other = Authority(), Authority("others")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    files = tls(tmp_path, authority.issue("server"), client_ca=str(tmp_path / "ca.pem"))
    guarded = await start_guarded(tls=files)
    mine, foreign = authority.issue("me"), other.issue("me")
    roots = authority.certificate

    with_mine = tls_credentials(roots, mine.certificate, mine.key)
    with_foreign = tls_credentials(roots, foreign.certificate, foreign.key)

    assert await why(guarded.address, options(guarded, with_mine)) == ""
    assert "--client-cert" in await why(guarded.address, options(guarded, with_foreign))
    assert "--client-cert" in await why(guarded.address, options(guarded, tls_credentials(roots)))
    async with AsyncClient(guarded.address, options=ClientOptions(credentials=with_mine)) as client:
        with pytest.raises(LlamaOrchError, match="authorization"):
            await client.capabilities()


@asynccontextmanager
async def watch(
    address: str, roots: bytes
) -> AsyncIterator["grpc.aio.UnaryStreamCall[object, health_pb2.HealthCheckResponse]"]:
    """An open stream on a connection of its own, past its first message."""
    settings = [("grpc.use_local_subchannel_pool", 1)]
    credentials = grpc.ssl_channel_credentials(roots)
    async with grpc.aio.secure_channel(address, credentials, settings) as channel:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        async with asyncio.timeout(WAIT_S):
            assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
        yield call


async def test_a_renewed_certificate_counts_for_new_connections_and_drops_no_stream(
    start_guarded: StartGuarded, tmp_path: Path
) -> None:
    """AUTH-1002: half of one, or one whose key is still to come, changes nothing."""
    first, second = Authority("a"), Authority("b")
    guarded = await start_guarded(tls=tls(tmp_path, first.issue("server")))

    async with watch(guarded.address, first.certificate) as stream:
        renewed = second.issue("server")
        for half in (b"half a certifica", renewed.certificate):
            (tmp_path / "server.pem").write_bytes(half)
            async with watch(guarded.address, first.certificate):
                pass
        tls(tmp_path, renewed)
        async with watch(guarded.address, second.certificate):
            pass
        with pytest.raises(grpc.aio.AioRpcError, match="CERTIFICATE_VERIFY_FAILED"):
            async with watch(guarded.address, first.certificate):
                pass
        await guarded.server._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        async with asyncio.timeout(WAIT_S):
            told = await stream.read()

    assert told.status == health_pb2.HealthCheckResponse.NOT_SERVING


def _key_of_another(folder: Path, authority: Authority) -> None:
    (folder / "server.key").write_bytes(authority.issue("b").key)


def _not_pem(folder: Path, authority: Authority) -> None:
    del authority
    (folder / "server.pem").write_bytes(b"\x30\x82")


def _no_file(folder: Path, authority: Authority) -> None:
    del authority
    (folder / "server.key").unlink()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_key_of_another, "tls.key: .*is not the key of the certificate"),
        (_not_pem, "tls.certificate: .*is not in PEM form"),
        (_no_file, "server.key: No such file"),
    ],
)
async def test_certificates_that_cannot_be_used_stop_the_start(
    tmp_path: Path, spoil: object, told: str
) -> None:
    """AUTH-1002: the sentence names the setting and the file."""
    authority = Authority()
    files = tls(tmp_path, authority.issue("a"))
    spoil(tmp_path, authority)  # type: ignore[operator]
    server = OrchestratorServer(
        Config.model_validate({"listen": "127.0.0.1:0", "store": {"kind": "memory"}, "tls": files})
    )

    with pytest.raises(CannotStartError, match=told):
        await server.start()
    await server.stop()


def host_config(guarded: Guarded, link: dict[str, object], **tables: object) -> HostConfig:
    """A host with one mock engine."""
    base: dict[str, object] = {
        "orchestrator": guarded.address,
        "listen": "127.0.0.1:0",
        "host_id": "gpu1",
        "devices": "cpu",
        "link": {"backoff": {"initial_ms": 5, "cap_ms": 50}, **link},
        "pools": [{"pool_id": "p0", "engine": {"kind": "mock"}}],
    }
    return HostConfig.model_validate(base | tables)


async def test_a_host_with_a_token_serves_a_client_with_another_over_tls(
    start_guarded: StartGuarded, tmp_path: Path
) -> None:
    """AUTH-1007: the whole way, all three behind certificates of one authority, inspection too."""
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    guarded = await start_guarded(tls=tls(tmp_path, authority.issue("server")))
    (tmp_path / "token").write_text(guarded.tokens["pool"] + "\n", encoding="utf-8")
    certificate, key = authority.issue("host").write(tmp_path, "host")
    tokens = guarded.server._config.auth.tokens
    config = host_config(
        guarded,
        {"token_file": str(tmp_path / "token"), "tls": {"ca": str(tmp_path / "ca.pem")}},
        tls={"certificate": certificate, "key": key},
        auth={"tokens": {n: t.model_dump(exclude_defaults=True) for n, t in tokens.items()}},
    )
    manager = PoolManager(config, devices=CpuDevices())
    running = asyncio.create_task(manager.run())
    trusting = tls_credentials(authority.certificate)
    try:
        async with asyncio.timeout(WAIT_S):
            await manager.listening.wait()
            async with AsyncClient(guarded.address, options=options(guarded, trusting)) as client:
                async for pools in client.watch_pools():
                    if any(pool.state == "READY" for pool in pools):
                        break
                job = await client.enqueue(model_id=pools[0].model_id, prompt="hi")
                async for _ in client.stream(job.job_id):
                    pass
                done = await client.get_job(job.job_id)
        refused = {
            role: await _inspected(manager.address, trusting, guarded, role)
            for role in ("", "pool", "client")
        }
    finally:
        manager.stop()
        await running

    assert done.state.value == "FINISHED"
    assert refused == {"": "UNAUTHENTICATED", "pool": "PERMISSION_DENIED", "client": "OK"}


async def _inspected(
    address: str, credentials: grpc.ChannelCredentials, guarded: Guarded, role: str
) -> str:
    method = "/llamaorch.pool.v1.PoolManagerService/GetSnapshots"
    async with grpc.aio.secure_channel(address, credentials) as channel:
        call = channel.unary_unary(method)(b"", metadata=guarded.metadata(role))
        return (await call.code()).name


@pytest.mark.parametrize(
    ("role", "told"),
    [("", "asks for a token"), ("client", "role client"), ("other", "not one of this server's")],
)
async def test_a_host_that_may_not_register_says_which_setting_to_change(
    guarded: Guarded, tmp_path: Path, role: str, told: str
) -> None:
    """AUTH-1007: pools must present a token, and of the right role; its log names the setting."""
    (tmp_path / "token").write_text(guarded.tokens.get(role, "x" * 40), encoding="utf-8")
    link: dict[str, object] = {"token_file": str(tmp_path / "token")} if role else {}
    manager = PoolManager(host_config(guarded, link), devices=CpuDevices())
    with lost_sessions() as lost:
        running = asyncio.create_task(manager.run())
        try:
            async with asyncio.timeout(WAIT_S):
                reason = await lost.get()
        finally:
            manager.stop()
            await running

    assert told in reason
    assert "link.token_file" in reason
    assert not guarded.server.runtime.core.pools


@contextmanager
def lost_sessions() -> Iterator[asyncio.Queue[str]]:
    """Why sessions with the orchestrator ended, as the log of the pool manager tells."""
    reasons: asyncio.Queue[str] = asyncio.Queue()

    def collect(_: object, __: str, entry: dict[str, str]) -> dict[str, str]:
        if entry["event"] == "session_lost":
            reasons.put_nowait(entry["reason"])
        raise structlog.DropEvent

    former = structlog.get_config()["processors"]
    structlog.configure(processors=[collect])
    try:
        yield reasons
    finally:
        structlog.configure(processors=former)
