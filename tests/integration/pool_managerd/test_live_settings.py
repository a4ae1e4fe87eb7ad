"""What each setting of a host does that SIGHUP changes, and that none is missing here. HME-003."""

import typing
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from grpc import StatusCode, aio
from structlog.testing import capture_logs

from llamaorch.pool.v1 import pool_manager_service_pb2 as pb
from llamaorch.pool.v1.pool_manager_service_pb2_grpc import PoolManagerServiceStub
from pool_managerd.config.live import ReloadReport
from pool_managerd.config.problems import ConfigError, tables_in
from pool_managerd.config.schema import Config
from pool_managerd.config.table import LIVE, Table
from pool_managerd.core.attempts import AttemptKey, AttemptLog
from pool_managerd.core.store import AttemptStore, StoreLimits
from pool_managerd.errors import SessionLostError
from tests.integration.pool_managerd.harness import Host, Options, RunHost, make_config

Check = Callable[[RunHost, Path], Awaitable[None]]
CHECKS: dict[str, Check] = {}
HASH = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
"""Of the token "hi"."""


def shows(*names: str) -> Callable[[Check], Check]:
    """Notes that a check shows what these settings do."""

    def note(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(names, check))
        return check

    return note


def live_keys(table: type[Table] = Config, path: str = "", *, live: bool = False) -> Iterator[str]:
    """Every key that is said to change without a restart."""
    for name, info in table.model_fields.items():
        so = live or LIVE in info.metadata
        inner = tables_in(info.annotation)
        many = "NAME." if typing.get_origin(info.annotation) is dict else ""
        for each in inner:
            yield from live_keys(each, f"{path}{name}.{many}", live=so)
        if so and not inner and not info.exclude:
            yield path + name


async def reload(host: Host, **tables: object) -> ReloadReport:
    """Has another file read."""
    wanted = make_config(host.orchestrator.address, **tables)
    host.manager._live._read = lambda: wanted
    return await host.manager._live.reload(host.manager._telemetry)


async def apply(host: Host, **tables: object) -> None:
    """Changes what must need no restart."""
    report = await reload(host, **tables)
    assert report.outcome == "applied", report
    assert not report.waiting


# --- what they do


@shows("log_level", "shutdown_grace_ms")
async def what_the_process_does(run_host: RunHost, _: Path) -> None:
    """In force when they are asked for; see test_process.py for what is seen of it."""
    host = await run_host()

    await apply(host, shutdown_grace_ms=1)

    assert host.manager._config.shutdown_grace_ms == 1


@shows("limits.held_bytes_per_job", "limits.held_bytes_total", "limits.watchers_max")
async def what_is_held_and_watched(run_host: RunHost, _: Path) -> None:
    """The store reads its bounds with each piece, see below; who watches already stays."""
    host = await run_host(Options(config={"limits": {"watchers_max": 1}}))
    async with aio.insecure_channel(host.manager.address) as channel:
        stub = PoolManagerServiceStub(channel)
        first = stub.WatchSnapshots(pb.WatchSnapshotsRequest())
        await first.read()
        assert await stub.WatchSnapshots(pb.WatchSnapshotsRequest()).code() is (
            StatusCode.RESOURCE_EXHAUSTED
        )
        limits = {"watchers_max": 2, "held_bytes_per_job": 5_000, "held_bytes_total": 9_000}

        await apply(host, limits=limits)

        await stub.WatchSnapshots(pb.WatchSnapshotsRequest()).read()
        assert not first.done()
    parts = host.manager._parts
    assert parts is not None
    assert parts.executor.store.limits == StoreLimits(5_000, 9_000, 8_192)
    assert parts.facts.limits.held_bytes_total == 9_000


@shows(
    *("outbound.enabled", "outbound.allow", "outbound.deny", "outbound.file_bytes_max"),
    *("outbound.silence_timeout_ms", "outbound.fetch_timeout_ms", "outbound.hf_endpoint"),
    "outbound.hf_token_env",
)
async def where_models_come_from(run_host: RunHost, _: Path) -> None:
    """The policy and the bounds of fetches that begin after the change."""
    host = await run_host()
    files = host.manager._files
    address = "https://models.example/m.gguf#sha256=" + "0" * 64

    async def judged() -> str:
        found = await files.look(address)
        return getattr(found, "rule", str(found))

    before = await judged()
    outbound: dict[str, object] = {"enabled": True, "allow": ["models.example"]}
    await apply(host, outbound=outbound)
    allowed = await judged()
    await apply(host, outbound=outbound | {"deny": ["models.example"]})
    denied = await judged()
    rest = {"file_bytes_max": 7, "silence_timeout_ms": 8, "fetch_timeout_ms": 9}
    hub = {"hf_endpoint": "https://mirror.example", "hf_token_env": "OTHER"}
    await apply(host, outbound=outbound | rest | hub)

    assert len({before, allowed, denied}) == 3
    config = files._resolver.config
    assert (config.limits.file_bytes_max, config.limits.silence_timeout_ms) == (7, 8)
    assert files._timeout_ms == 9
    assert config.hub_endpoint == "https://mirror.example"
    assert host.manager._config.outbound.model_dump().items() >= hub.items()


@shows("auth.tokens.NAME.role", "auth.tokens.NAME.sha256", "auth.tokens.NAME.expires")
async def who_may_look(run_host: RunHost, _: Path) -> None:
    """AUTH-1001: tokens come, go, change their role and end, all at once."""
    other = {"role": "admin", "sha256": "ab" * 32}
    host = await run_host(Options(config={"auth": {"tokens": {"other": other}}}))
    async with aio.insecure_channel(host.manager.address) as channel:
        stub = PoolManagerServiceStub(channel)

        async def code(**table: object) -> StatusCode:
            mine = {"role": "client", "sha256": HASH} | table
            await apply(host, auth={"tokens": {"other": other, "mine": mine}})
            metadata = (("authorization", "Bearer hi"),)
            return await stub.GetSnapshots(pb.GetSnapshotsRequest(), metadata=metadata).code()

        assert await code() is StatusCode.OK
        assert await code(role="pool") is StatusCode.PERMISSION_DENIED
        assert await code(expires="2001-01-01T00:00:00Z") is StatusCode.UNAUTHENTICATED
        assert await code(sha256="cd" * 32) is StatusCode.UNAUTHENTICATED


@shows(
    *("link.token_env", "link.token_file", "link.tls.enabled", "link.tls.ca"),
    *("link.tls.certificate", "link.tls.key", "link.tls.server_name", "link.tls.allow_plaintext"),
)
async def how_the_host_proves_itself(run_host: RunHost, folder: Path) -> None:
    """With the next connection, which reads the files anew."""
    host, file = await run_host(), folder / "token"
    file.write_text("hi\n", encoding="ascii")
    link = typing.cast("dict[str, object]", make_config("127.0.0.1:1").model_dump()["link"])
    absent = str(folder / "absent.pem")
    tls = {"ca": absent, "server_name": "there", "certificate": absent, "key": absent}

    await apply(host, link=link | {"token_file": str(file)})
    shown = await host.manager._show()
    shown_for_inputs = await host.manager._inputs._metadata()
    await apply(host, link=link | {"tls": tls | {"enabled": True, "allow_plaintext": True}})

    assert shown == shown_for_inputs == (("authorization", "Bearer hi"),)
    with pytest.raises(SessionLostError, match=r"absent\.pem"):
        await host.manager._connect()
    assert host.manager._config.link.tls.server_name == "there"


# --- all of them, and what a reload is


def test_every_setting_that_is_said_to_change_has_a_check() -> None:
    """And nothing else has one."""
    assert set(CHECKS) == set(live_keys())


@pytest.mark.parametrize("check", dict.fromkeys(CHECKS.values()), ids=lambda check: check.__name__)
async def test_a_change_takes_effect(check: Check, run_host: RunHost, tmp_path: Path) -> None:
    """Without a restart, each as its check says."""
    await check(run_host, tmp_path)


def test_lower_bounds_of_held_output_count_with_the_next_piece() -> None:
    """LO-302: what was acknowledged goes first."""
    store = AttemptStore(StoreLimits(100_000, 100_000, 8))
    log = AttemptLog(AttemptKey("j", 1), ("p", "p-1"))
    store.add(log)
    for _ in range(40):
        store.append(log, "x" * 100, ())
    log.ack(log.text_bytes)
    before = store.held_bytes

    store.limits = StoreLimits(2_000, 2_000, 8)
    store.append(log, "x", ())

    assert store.held_bytes < 2_000 < before


async def test_pools_take_a_restart_and_are_named(run_host: RunHost) -> None:
    """Key by key; whatever else is right is in force."""
    host = await run_host()
    engine = {"kind": "mock", "slots": 3}

    with capture_logs() as lines:
        report = await reload(
            host,
            shutdown_grace_ms=7,
            pools=[{"pool_id": "p0", "engine": engine}, {"pool_id": "p1", "engine": engine}],
        )

    assert set(report.changed) == {"shutdown_grace_ms"}
    assert "pools.p1.pool_id" in report.waiting
    assert report.waiting["pools.p0.engine.slots"].endswith("-> 3")
    (line,) = (each for each in lines if each["event"] == "config_reload")
    assert "restart pool-managerd for pools." in line["human"]
    assert await host.ready()


async def test_a_mistake_changes_nothing(run_host: RunHost) -> None:
    """The problems are told, and the next file counts again."""
    host = await run_host()

    def broken() -> Config:
        raise ConfigError(["limits.watchers_max: too many"])

    host.manager._live._read = broken
    report = await host.manager._live.reload(host.manager._telemetry)

    assert (report.outcome, report.problems) == ("refused", ("limits.watchers_max: too many",))
    await apply(host, shutdown_grace_ms=7)
