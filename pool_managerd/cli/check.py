"""What a pool manager would find here: devices, engines, models, and what is wrong.

It starts no engine, needs no orchestrator and touches no running pool: it reads devices and files,
looks for programs, and asks servers that are configured whether they answer.
"""

import asyncio
import importlib.metadata
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from pool_managerd.clock import SystemClock
from pool_managerd.config.launch import AttachingTable, HttpTable, LaunchTable
from pool_managerd.config.llama import EmbeddedTable
from pool_managerd.config.schema import Config, PoolTable
from pool_managerd.core.clocks import perf_scale
from pool_managerd.core.device import Device, DeviceHealth
from pool_managerd.core.fit import HOST, LayerRun, human_bytes
from pool_managerd.core.ledger import Ledger
from pool_managerd.core.mask import mask_problems
from pool_managerd.core.model_ref import shown_ref
from pool_managerd.devices.port import DeviceSource
from pool_managerd.engines.embedded import embedded_shortfalls, gpu_shortfalls
from pool_managerd.engines.gguf_file import gguf_shards
from pool_managerd.engines.port import PreloadError
from pool_managerd.errors import DevicesUnavailableError, SessionLostError
from pool_managerd.link.inputs import refusal
from pool_managerd.models.files import FoundModel, ModelFiles, stated_digest, with_model
from pool_managerd.models.resolver import absent
from pool_managerd.preflight.context import longer_than_trained
from pool_managerd.preflight.host import HostPreflight, PreflightDeps
from pool_managerd.preflight.memory import device_name, memory_of
from pool_managerd.snapshots import by_device_id, masked

PROGRAMS = (
    "llama-server",
    "ollama",
    "vllm",
    "sglang",
    "text-generation-launcher",
    "transformers",
    "tritonserver",
)
"""Engines that are looked for on PATH."""

DIGEST_BYTES_MAX = 2 << 30
"""Larger models are digested on demand only: it takes about a second per gigabyte."""

_ANSWER_TIMEOUT_S = 2.0


@dataclass(slots=True)
class PoolReport:
    """One pool: facts, what it would do otherwise than told, and what keeps it from being READY."""

    pool_id: str
    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class HostReport:
    """Everything that was found. `fatal`: the pool manager would not even start."""

    devices: list[str] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)
    pools: list[PoolReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: every pool can start; 1: one cannot; 2: the pool manager cannot."""
        if self.fatal:
            return 2
        return 1 if any(pool.problems for pool in self.pools) else 0


@dataclass(frozen=True, slots=True)
class _Host:
    """What pools are looked at with: the same parts as for a real start."""

    devices: tuple[Device, ...]
    files: ModelFiles
    preflight: HostPreflight
    all_digests: bool


async def inspect_host(config: Config, source: DeviceSource, *, all_digests: bool) -> HostReport:
    """Looks at this host as `config` describes it; takes seconds, longer with `all_digests`."""
    report = HostReport(engines=_engines())
    devices: tuple[Device, ...] = ()
    try:
        await source.start(lambda _device_id, _sentence: None, lambda: None)
        devices = source.devices()
    except DevicesUnavailableError as error:
        report.fatal.append(f"devices: {error}")
    finally:
        await source.stop()
    report.devices = [device_line(device) for device in devices]
    host = _host(config, devices, all_digests=all_digests)
    for table in config.pools:
        problems = mask_problems(table.devices, devices) if devices else []
        report.fatal += [f"pools.{table.pool_id}.devices: {problem}" for problem in problems]
        pool = await _pool(table if problems else by_device_id(table, devices), host)
        pool.problems += [f"devices: {problem}" for problem in problems]
        report.pools.append(pool)
    report.notes += await _peers(config)
    report.fatal += await _link_problems(config)
    return report


def _host(config: Config, devices: tuple[Device, ...], *, all_digests: bool) -> _Host:
    clock = SystemClock()
    files = ModelFiles(config, clock)
    preflight = HostPreflight(
        PreflightDeps(
            clock=clock,
            files=files,
            ledger=Ledger(),
            devices=lambda table: masked(table, devices),
            read_at_ms=clock.now_ms,
            wait_ms=0,
        )
    )
    return _Host(devices, files, preflight, all_digests)


def _engines() -> list[str]:
    found = [f"xllamacpp {_version('xllamacpp')} (embedded)"]
    found += [f"{name}: {path}" for name in PROGRAMS if (path := shutil.which(name))]
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def device_line(device: Device) -> str:
    """What is known of a device, in one line for people."""
    memory = "memory unknown"
    if device.memory_total_bytes is not None:
        free = human_bytes(device.memory_free_bytes or 0)
        memory = f"{free} free of {human_bytes(device.memory_total_bytes)}"
    facts = [device.name or device.kind.value, memory]
    if device.compute_capability is not None:
        facts.append(f"compute capability {device.compute_capability}")
    if device.driver_version is not None:
        facts.append(f"driver {device.driver_version}")
    if device.health is not DeviceHealth.OK:
        facts.append(f"{device.health.name}: {device.health_detail}")
    index = "" if device.index is None else f"{device.index} "
    return f"{index}{device.device_id}: {', '.join(facts)}"


async def _pool(table: PoolTable, host: _Host) -> PoolReport:
    report = PoolReport(table.pool_id)
    engine = table.engine
    report.facts.append(f"engine {engine.kind}, model {engine.model_id}")
    mine = masked(table, host.devices)
    report.problems += [device.health_detail for device in mine if device.health_detail]
    scale = perf_scale(mine)
    if scale is not None:
        report.facts.append(f"its devices lower their clocks: {scale:.2f} of full speed")
    if isinstance(engine, EmbeddedTable):
        missing = await asyncio.to_thread(embedded_shortfalls)
        report.problems += missing or await asyncio.to_thread(gpu_shortfalls, engine.gpu_layers)
    elif isinstance(engine, AttachingTable) and engine.launch is not None:
        _program(report, engine.launch)
    elif isinstance(engine, AttachingTable):
        await _server(report, engine)
    found = await _model(report, table, host)
    if found is not None:
        warning = await asyncio.to_thread(longer_than_trained, found)
        report.warnings += [warning] if warning else []
    if found is not None and host.devices:
        await _memory(report, found, host)
    return report


async def _model(report: PoolReport, table: PoolTable, host: _Host) -> PoolTable | None:
    """The table with its model found; None when that is not here, or cannot be loaded."""
    engine = table.engine
    if not isinstance(engine, EmbeddedTable | AttachingTable):
        return table
    if not (engine.model_ref or engine.model_path):
        return table
    try:
        found = await _found(report, engine.model_ref, engine.model_path, host)
        if found is None:
            return None
        missing = await host.files.shortfalls(engine, found.path)
        report.problems += missing
        if missing:
            return None
        digest = await _digest(report, found, stated_digest(engine), host)
    except PreloadError as error:
        report.problems += error.shortfalls
        return None
    return with_model(table, found.path, digest)


async def _found(
    report: PoolReport, model_ref: str, model_path: str, host: _Host
) -> FoundModel | None:
    """Where the model is; None, with a fact or a problem, when it is not of this host yet."""
    if not model_ref:
        return FoundModel(Path(model_path))
    found = await host.files.look(model_ref)
    if isinstance(found, FoundModel):
        return found
    if not found.allowed:
        raise PreloadError([absent(model_ref, found)])
    report.facts.append(
        f"{shown_ref(model_ref)} would be fetched from {found.host} ({found.rule}); its memory is "
        "judged then"
    )
    return None


async def _digest(report: PoolReport, found: FoundModel, expected: str, host: _Host) -> str:
    """The model's digest where it is cheap enough, and the fact about the file."""
    path = found.path
    if not path.is_file():
        report.facts.append(f"model folder {path}")
        return ""
    size = sum(shard.stat().st_size for shard in gguf_shards(path))
    digest = ""
    if found.verified or host.all_digests or size <= DIGEST_BYTES_MAX:
        digest = await host.files.digest(found, expected)
    told = digest or "digest not computed (--digests)"
    report.facts.append(f"model file {path}: {human_bytes(size)}, {told}")
    return digest


async def _memory(report: PoolReport, table: PoolTable, host: _Host) -> None:
    """What a start would say of the memory, beside the pools before this one."""
    review = await host.preflight.review(table)
    if review is None:
        return
    mine = masked(table, host.devices)
    names = {**{memory_of(device): device_name(device) for device in mine}, HOST: "the host"}
    taken = [
        f"{human_bytes(size)} of {names.get(memory, memory)}"
        for memory, size in review.needs.items()
    ]
    if taken:
        notes = "".join(f" ({note})" for note in review.notes)
        report.facts.append(f"would take {', '.join(taken)}{notes}")
        if review.layers:
            report.facts.append(_plan(review.layers, mine))
    else:
        report.facts += review.notes
    if table.memory_check == "enforce":
        report.problems += review.shortfalls
    else:
        report.facts += [f"starts all the same: {sentence}" for sentence in review.shortfalls]


def _plan(layers: Sequence[LayerRun], devices: Sequence[Device]) -> str:
    """What of the model goes where, in the order of its layers. ORCH-3202."""
    names = {HOST: "the host", **{device.device_id: device_name(device) for device in devices}}
    parts = []
    for run in layers:
        what = [f"{run.count} layers from {run.first}"] if run.count else []
        what += ["the output"] if run.output else []
        parts.append(f"{' and '.join(what)} on {names.get(run.place, run.place)}")
    return f"plan: {', '.join(parts)}"


def _program(report: PoolReport, launch: LaunchTable) -> None:
    program = launch.command[0]
    found = shutil.which(program, path=None)
    if found is None:
        report.problems.append(f"launch.command: no program {program} is on PATH or at that path")
    else:
        report.facts.append(f"launches {found}")
    if launch.cwd and not Path(launch.cwd).is_dir():
        report.problems.append(f"launch.cwd: {launch.cwd} is no directory")


async def _server(report: PoolReport, engine: AttachingTable) -> None:
    """Any answer will do: engines differ in what they answer, and the key is not sent."""
    if not isinstance(engine, HttpTable):
        address = str(getattr(engine, engine.ADDRESS_KEY))
        accepts = await _accepts(address)
        problem = "" if accepts else f"{address} accepts no connection"
    else:
        address = engine.base_url
        problem = await _silence(report, address)
    if problem:
        report.problems.append(f"{problem}: start the server, or launch it")
    elif not isinstance(engine, HttpTable):
        report.facts.append(f"{address} accepts connections")


async def _silence(report: PoolReport, base_url: str) -> str:
    """Notes the answer of a server; what is wrong, or ""."""
    timeout = aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{base_url.rstrip('/')}/health", allow_redirects=False) as response,
        ):
            report.facts.append(f"{base_url} answers (HTTP {response.status} to /health)")
            return ""
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"{base_url} does not answer: {_why(error)}"


def _why(error: Exception) -> str:
    """The cause, where the words of the library are about itself."""
    match error:
        case TimeoutError():
            return f"it took longer than {_ANSWER_TIMEOUT_S:g} s"
        case aiohttp.ClientResponseError():
            return "what listens there does not speak HTTP"
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return "nobody listens there"
        case aiohttp.ClientConnectorError() if error.strerror:
            return error.strerror
        case _:
            return str(error) or type(error).__name__


async def _peers(config: Config) -> list[str]:
    orchestrator = await _accepts(config.orchestrator)
    running = await _accepts(config.listen)
    answers = "answers" if orchestrator else "does not answer: pools start, and get no work from it"
    notes = [f"orchestrator {config.orchestrator} {answers}"]
    if running:
        notes.append(f"{config.listen} is in use: a pool manager seems to run; free memory is less")
    return notes


async def _link_problems(config: Config) -> list[str]:
    """What keeps this host from registering at an orchestrator that is there."""
    try:
        why = await refusal(config, _ANSWER_TIMEOUT_S)
    except SessionLostError as error:
        return [str(error)]
    # One that is not started yet is a note.
    return [f"orchestrator: {why}"] if why and await _accepts(config.orchestrator) else []


async def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if port == "0":
        return False
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, ValueError):
        return False
    writer.close()
    return True


def report_lines(report: HostReport) -> list[str]:
    """The report for people, one line after another; problems are marked with "!"."""
    lines = ["devices"]
    lines += [f"  {line}" for line in report.devices] or ["  none"]
    lines.append("engines found")
    lines += [f"  {line}" for line in report.engines]
    for pool in report.pools:
        lines.append(f"pool {pool.pool_id}: {'cannot start' if pool.problems else 'ok'}")
        lines += [f"  {fact}" for fact in pool.facts]
        lines += [f"  warning: {warning}" for warning in pool.warnings]
        lines += [f"  ! {problem}" for problem in pool.problems]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"! {sentence}" for sentence in report.fatal]
    return lines
