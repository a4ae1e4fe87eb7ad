"""What each setting does that a reload changes, and that none is missing here. HME-003.

Settings of the core are shown one by one in tests/unit/orchestrator_core/core/test_reconfigure.py;
here it is shown that they reach it.
"""

import asyncio
import importlib.metadata
import typing
from collections.abc import Awaitable, Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2_grpc, policy_service_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb2
from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pools_pb2
from orchestrator_core.auth.tokens import new_token, sha256_of
from orchestrator_core.config.changes import merged
from orchestrator_core.config.derived import core_config
from orchestrator_core.config.schema import Config
from orchestrator_core.config.text import Key, keys
from orchestrator_core.core.outbound import OutboundDecision, OutboundPolicy
from orchestrator_core.servicers import outbound_judge
from orchestrator_core.servicers.outbound_judge import OutboundQuestion
from orchestrator_core.store.memory import MemoryStore
from orchestrator_core.store.port import Keep
from tests.integration.orchestrator import test_catalog
from tests.integration.orchestrator.calls import WAIT_S, enqueue, ready_host
from tests.integration.orchestrator.reloaded import BASE, Reloadable, reloadable
from tests.unit.orchestrator_core.core.world_settings import OTHER

Check = Callable[[Path], Awaitable[None]]
CHECKS: dict[str, Check] = {}

ADMIN, GUEST, NEW = new_token(), new_token(), new_token()


def shows(*names: str) -> Callable[[Check], Check]:
    """Notes that a check shows what these settings do."""

    def note(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(names, check))
        return check

    return note


# --- what they do


@shows("jobs.input_bytes_max")
async def a_request_may_be_smaller(folder: Path) -> None:
    """Refused by the new bound, which clients are told of."""
    async with reloadable(folder) as server:
        await ready_host(server)
        long = job_pb2.JobInput(text="x" * 2_000)
        await enqueue(server, input=long)

        await server.apply(BASE + "[jobs]\ninput_bytes_max = 1024\n")

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await enqueue(server, input=long)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        told = await server.jobs.GetCapabilities(jobs_pb2.GetCapabilitiesRequest())
        assert told.limits.input_bytes_max == 1_024


@shows("jobs.output_bytes_per_job", "jobs.output_bytes_total")
async def less_output_is_kept(folder: Path) -> None:
    """Of jobs that come after the change; the total counts at the next output."""
    async with reloadable(folder) as server:
        host = await ready_host(server, slots_total=4, slots_free=4)
        runtime = server.server.runtime
        relay = runtime.relay

        async def run(pieces: int) -> str:
            given = await enqueue(server)
            start = await host.start()
            await host.started(start.handle)
            for _ in range(pieces):
                await host.tokens(start.handle, "x" * 1_000)
            await host.finish(start.handle)
            while runtime.core.jobs[given.job_id].live:
                await runtime.next_step()
            return given.job_id

        first = await run(8)
        assert relay.log(first).oldest_offset == 0
        await server.apply(BASE + "[jobs]\noutput_bytes_per_job = 4096\n")
        second = await run(8)
        assert relay.log(first).oldest_offset == 0
        assert 0 < relay.log(second).oldest_offset < 8_000
        limits = "[jobs]\noutput_bytes_per_job = 4096\noutput_bytes_total = 8000\n"
        await server.apply(BASE + limits)
        await run(1)
        assert relay.bytes_held <= 8_000
        told = await server.jobs.GetCapabilities(jobs_pb2.GetCapabilitiesRequest())
        assert told.limits.output_bytes_per_job == 4_096


@shows("pools.drain_timeout_ms")
async def a_drain_lasts_as_long_as_is_set(folder: Path) -> None:
    """One that begins after the change and says nothing itself."""
    async with reloadable(folder) as server:
        await ready_host(server)

        await server.apply(BASE + "[pools]\ndrain_timeout_ms = 7000\n")

        drained = await server.pools.DrainPool(pools_pb2.DrainPoolRequest(pool_id="pool-a"))
        drain = drained.pool.drain
        assert drain.until.ToMilliseconds() - drain.began_at.ToMilliseconds() == 7_000


@shows("pools.watchers_max")
async def more_may_watch(folder: Path) -> None:
    """Who watches already stays."""
    few, more = ("[pools]\nwatchers_max = 1\n", "[pools]\nwatchers_max = 2\n")
    async with reloadable(folder, BASE + few) as server:
        first = server.pools.WatchPools(pools_pb2.WatchPoolsRequest())
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError):
            await server.pools.WatchPools(pools_pb2.WatchPoolsRequest()).read()

        await server.apply(BASE + more)

        second = server.pools.WatchPools(pools_pb2.WatchPoolsRequest())
        await second.read()
        assert not first.done()


def nobody(_: OutboundPolicy, __: OutboundQuestion) -> OutboundDecision:
    """A policy of another package."""
    return OutboundDecision(False, "nobody", "nobody may")


@shows("outbound.enabled", "outbound.allow", "outbound.deny", "outbound.policy")
async def tools_may_connect_elsewhere(folder: Path) -> None:
    """The switch, both lists and the plug-in; one that is not installed changes nothing."""
    on = "[outbound]\nenabled = true\n"
    async with reloadable(folder) as server:

        async def allowed(url: str = "https://example.com/") -> bool:
            request = policy_service_pb2.CheckOutboundRequest(url=url)
            return (await server.policy.CheckOutbound(request)).allowed

        assert not await allowed()
        await server.apply(BASE + on + 'allow = ["example.com"]\n')
        assert await allowed()
        await server.apply(BASE + on + 'allow = ["*"]\ndeny = ["example.com"]\n')
        assert not await allowed()
        assert await allowed("https://example.org/")
        answer = await server.change(BASE + on + 'allow = ["*"]\npolicy = "gone"\n')
        assert "no policy gone is installed" in answer.problems[0]
        assert not await allowed()
        with pytest.MonkeyPatch.context() as patch:
            entry = EntryPoint("ours", f"{__name__}:nobody", outbound_judge.GROUP)
            patch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
            await server.apply(BASE + on + 'allow = ["*"]\npolicy = "ours"\n')
        assert not await allowed("https://example.org/")


class Noting(MemoryStore):
    """Notes what it was told to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: asyncio.Queue[Keep] = asyncio.Queue()

    async def prune(self, keep: Keep) -> None:
        """Notes it."""
        self.kept.put_nowait(keep)


@shows("store.prune_every_ms", "store.bytes_max", "shutdown_grace_ms")
async def the_journal_is_pruned_sooner(folder: Path) -> None:
    """A wait of a day that has begun ends when the new setting says."""
    store = Noting()
    daily = BASE + "prune_every_ms = 86400000\n"
    async with reloadable(folder, daily, store) as server:
        soon = BASE + "prune_every_ms = 1\nbytes_max = 2000000\n"

        await server.apply("shutdown_grace_ms = 0\n" + soon)

        assert (await store.kept.get()).bytes_max == 2_000_000
        # The process asks for it when it has to stop; see test_reload_process.py.
        assert server.server.config.running.shutdown_grace_ms == 0


def tokens(*entries: str) -> str:
    """A file with tokens; one of an operator is always there."""
    admin = f'[auth.tokens.operator]\nrole = "admin"\nsha256 = "{sha256_of(ADMIN)}"\n'
    return "\n".join([BASE, admin, *entries])


def token(name: str, text: str, role: str = "client", more: str = "") -> str:
    """The table of one token."""
    return f'[auth.tokens.{name}]\nrole = "{role}"\nsha256 = "{sha256_of(text)}"\n{more}\n'


def bearer(text: str) -> tuple[tuple[str, str], ...]:
    """What a call with a token sends."""
    return (("authorization", f"Bearer {text}"),)


async def code_of(server: Reloadable, text: str, method: str = "ListPools") -> grpc.StatusCode:
    """How a call with a token ends."""
    async with grpc.aio.insecure_channel(str(server.server.address)) as channel:
        path = f"/llamaorch.orchestrator.v1.PoolAdminService/{method}"
        call = channel.unary_unary(path)(b"", metadata=bearer(text))
        return await call.code()


@shows(
    "auth.tokens.NAME.role",
    "auth.tokens.NAME.sha256",
    "auth.tokens.NAME.host_id",
    "auth.tokens.NAME.expires",
)
async def tokens_come_and_go(folder: Path) -> None:
    """AUTH-1001: at once, and with a token that is withdrawn its open streams."""
    ok, unknown = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
    async with reloadable(folder, tokens(token("guest", GUEST)), token=ADMIN) as server:
        async with grpc.aio.insecure_channel(str(server.server.address)) as channel:
            watch = channel.unary_stream("/llamaorch.orchestrator.v1.PoolAdminService/WatchPools")(
                b"", metadata=bearer(GUEST)
            )
            await watch.read()
            assert await code_of(server, NEW) is unknown

            await server.apply(tokens(token("guest", GUEST), token("newcomer", NEW)))
            assert await code_of(server, NEW) is ok
            assert not watch.done()

            await server.apply(tokens(token("newcomer", NEW)))
            assert await code_of(server, GUEST) is unknown
            assert await watch.code() is unknown
        denied = grpc.StatusCode.PERMISSION_DENIED
        bound = token("newcomer", NEW, "pool", 'host_id = "host-7"')
        await server.apply(tokens(bound))
        assert await code_of(server, NEW) is denied
        (known,) = (
            each
            for each in server.server._gate.tokens.identities  # type: ignore[union-attr]
            if each.name == "newcomer"
        )
        assert known.host_id == "host-7"
        over = token("newcomer", NEW, more="expires = 2001-01-01T00:00:00Z")
        await server.apply(tokens(over))
        assert await code_of(server, NEW) is unknown


@shows("auth.jobs_visible_to", "auth.expiry_warning_days")
async def others_jobs_become_visible(folder: Path) -> None:
    """AUTH-1007; and who is warned of the end of a token."""
    both = (token("guest", GUEST), token("newcomer", NEW, more="expires = 2100-01-01T00:00:00Z"))
    open_to_all = '[auth]\njobs_visible_to = "all"\nexpiry_warning_days = 0\n'
    async with reloadable(folder, tokens(*both), token=ADMIN) as server:

        async def seen() -> int:
            async with grpc.aio.insecure_channel(str(server.server.address)) as channel:
                stub = orchestrator_service_pb2_grpc.OrchestratorServiceStub(channel)
                request = jobs_pb2.ListJobsRequest()
                return len((await stub.ListJobs(request, metadata=bearer(GUEST))).jobs)

        await ready_host(server)
        await enqueue(server)
        assert not await seen()
        await server.apply(tokens(*both, open_to_all))
        assert await seen() == 1
    gate = server.server._gate
    assert gate is not None
    with capture_logs() as lines:
        server.server._warnings(gate).look()
    assert not lines


@shows("log_level")
async def more_is_logged(folder: Path) -> None:
    """See test_reload_process.py, where there are lines to look at."""
    async with reloadable(folder, 'log_level = "error"\n' + BASE) as server:
        await server.apply('log_level = "debug"\n' + BASE)

        assert server.server.config.running.log_level == "debug"


# --- every setting has its check


# Shown by tests of what they belong to.
ELSEWHERE = dict.fromkeys(
    ("catalog.retire_grace_ms", "catalog.trusted_keys.NAME.public_key"),
    test_catalog.test_settings_of_the_catalog_change_without_a_restart,
)


def other(key: Key) -> object:  # noqa: PLR0911 - one line for each kind
    """Another value of a setting."""
    info, kind = key.info, key.info.annotation
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    if key.path == "queue.policy":
        return "fail-fast"
    if typing.get_origin(kind) is typing.Literal:
        return next(word for word in typing.get_args(kind) if word != default)
    if isinstance(default, str):
        return "elsewhere"
    if kind is bool:
        return not default
    if kind is float:
        return 0.5
    if isinstance(default, int):
        high = next((item.le for item in info.metadata if hasattr(item, "le")), None)
        return default - 1 if default == high else default + 1
    return 7


def changed(path: str, value: object) -> Config:
    """The defaults, but for one setting."""
    tables: dict[str, typing.Any] = {}
    inner = tables
    *above, last = path.replace("NAME", "some").split(".")
    for name in above:
        inner = inner.setdefault(name, {})
    inner[last] = value
    if "prices" in above:
        inner |= {"input_micros_per_1k_tokens": 7, "output_micros_per_1k_tokens": 7}
    if above == ["tls"]:
        inner |= {"certificate": "elsewhere", "key": "elsewhere"}
    if last.endswith("_weight"):
        inner |= {"interactive_weight": 7, "batch_weight": 7}
    return Config.model_validate(tables)


LIVE = [key for key in keys() if key.live]


@pytest.mark.parametrize("key", LIVE, ids=lambda key: key.path)
def test_every_setting_that_is_said_to_change_has_a_check(key: Key) -> None:
    """By a check of its own below, or because the core is told, whose settings all have one."""
    if key.path in CHECKS or key.path in ELSEWHERE:
        return
    before, after = Config(), changed(key.path, other(key))

    assert merged(before, after) == after
    told, was = core_config(after), core_config(before)
    differing = {name for name in OTHER if getattr(told, name) != getattr(was, name)}
    assert differing, f"{key.path}: write a check of what it does"


def test_there_is_no_check_of_what_is_not_said_to_change() -> None:
    """The table of the documentation is what is tested."""
    assert CHECKS.keys() | ELSEWHERE.keys() <= {key.path for key in LIVE}


@pytest.mark.parametrize("key", [key for key in keys() if not key.live], ids=lambda key: key.path)
def test_what_needs_a_restart_stays(key: Key) -> None:
    """Whatever the file says."""
    wanted = changed(key.path, "127.0.0.1:1" if key.path.endswith("listen") else other(key))

    assert wanted != Config()
    assert merged(Config(), wanted) == Config()


@pytest.mark.parametrize("check", dict.fromkeys(CHECKS.values()), ids=lambda check: check.__name__)
async def test_a_change_takes_effect(check: Check, tmp_path: Path) -> None:
    """Without a restart, each as its check says."""
    async with asyncio.timeout(4 * WAIT_S):
        await check(tmp_path)
