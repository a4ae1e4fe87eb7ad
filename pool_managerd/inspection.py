"""What a pool manager would find here: devices, engines, models, and what is wrong.

It starts no engine, needs no orchestrator and touches no running pool: it reads devices and files,
looks for programs, and asks servers that are configured whether they answer.
"""

import asyncio
import importlib.metadata
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from pool_managerd.config import Config, PoolTable
from pool_managerd.config_engines import AttachingEngine, EmbeddedEngine, LaunchTable
from pool_managerd.core.device import Device, DeviceKind, sum_or_none
from pool_managerd.core.mask import mask_problems
from pool_managerd.devices.port import DeviceSource
from pool_managerd.engines.embedded import embedded_shortfalls
from pool_managerd.engines.embedded_worker import batch_tokens
from pool_managerd.engines.gguf_file import digest_in_thread, gguf_shards, gguf_shortfalls
from pool_managerd.engines.gguf_kv import kv_facts
from pool_managerd.errors import DevicesUnavailableError
from pool_managerd.snapshots import masked

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
_MIB = 1 << 20


@dataclass(slots=True)
class PoolReport:
    """One pool: facts, and whatever would keep it from being READY."""

    pool_id: str
    facts: list[str] = field(default_factory=list)
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
    report.devices = [_device(device) for device in devices]
    for table in config.pools:
        if devices:
            report.fatal += [
                f"pools.{table.pool_id}.devices: {problem}"
                for problem in mask_problems(table.devices, devices)
            ]
        report.pools.append(await _pool(table, devices, all_digests=all_digests))
    report.notes += await _peers(config)
    return report


def _engines() -> list[str]:
    found = [f"xllamacpp {_version('xllamacpp')} (embedded)"]
    found += [f"{name}: {path}" for name in PROGRAMS if (path := shutil.which(name))]
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def _device(device: Device) -> str:
    memory = "memory unknown"
    if device.memory_total_bytes is not None:
        free = _size(device.memory_free_bytes or 0)
        memory = f"{free} free of {_size(device.memory_total_bytes)}"
    facts = [device.name or device.kind.value, memory]
    if device.compute_capability is not None:
        facts.append(f"compute capability {device.compute_capability}")
    if device.driver_version is not None:
        facts.append(f"driver {device.driver_version}")
    index = "" if device.index is None else f"{device.index} "
    return f"{index}{device.device_id}: {', '.join(facts)}"


async def _pool(table: PoolTable, devices: tuple[Device, ...], *, all_digests: bool) -> PoolReport:
    report = PoolReport(table.pool_id)
    engine = table.engine
    report.facts.append(f"engine {engine.kind}, model {engine.model_id}")
    if isinstance(engine, EmbeddedEngine):
        report.problems += await asyncio.to_thread(embedded_shortfalls)
        await _model(report, Path(engine.model_path), engine.model_digest, all_digests=all_digests)
        await _fit(report, engine, masked(table, devices))
    elif isinstance(engine, AttachingEngine):
        if engine.launch is not None:
            _program(report, engine.launch)
        else:
            await _server(report, engine.base_url)
        path = getattr(engine, "model_path", "")
        if path:
            digest = getattr(engine, "model_digest", "")
            await _model(report, Path(path), digest, all_digests=all_digests)
    return report


async def _model(report: PoolReport, path: Path, digest: str, *, all_digests: bool) -> None:
    shortfalls = await asyncio.to_thread(gguf_shortfalls, path)
    report.problems += shortfalls
    if shortfalls:
        return
    size = sum(shard.stat().st_size for shard in gguf_shards(path))
    found = "digest not computed (--digests)"
    if all_digests or size <= DIGEST_BYTES_MAX:
        found = await digest_in_thread(path)
        if digest and found != digest:
            report.problems.append(f"model file {path} has {found}, but model_digest is {digest}")
    report.facts.append(f"model file {path}: {_size(size)}, {found}")


async def _fit(report: PoolReport, engine: EmbeddedEngine, mine: tuple[Device, ...]) -> None:
    """A lower bound: weights and cache against free memory, where both are known."""
    if report.problems or not mine:
        return
    path = Path(engine.model_path)
    weights = sum(shard.stat().st_size for shard in gguf_shards(path))
    batch = batch_tokens(engine.slots, engine.gpu_layers)
    kv = await asyncio.to_thread(kv_facts, path, engine.ctx_per_slot, batch)
    cache = kv.slot_bytes * engine.slots if kv else 0
    free = sum_or_none([device.memory_free_bytes for device in mine])
    on_device = engine.gpu_layers != 0 or all(d.kind is DeviceKind.CPU for d in mine)
    if free is None or not on_device:
        return
    fact = (
        f"weights {_size(weights)} + cache {_size(cache)} of {_size(free)} free on "
        f"{', '.join(device.device_id for device in mine)}"
    )
    if weights + cache > free and engine.gpu_layers in (0, -1):
        short = _size(weights + cache - free)
        report.problems.append(f"does not fit: {fact}, {short} too much")
    else:
        report.facts.append(fact)


def _program(report: PoolReport, launch: LaunchTable) -> None:
    program = launch.command[0]
    found = shutil.which(program, path=None)
    if found is None:
        report.problems.append(f"launch.command: no program {program} is on PATH or at that path")
    else:
        report.facts.append(f"launches {found}")
    if launch.cwd and not Path(launch.cwd).is_dir():
        report.problems.append(f"launch.cwd: {launch.cwd} is no directory")


async def _server(report: PoolReport, base_url: str) -> None:
    """Any answer will do: engines differ in what they answer, and the key is not sent."""
    timeout = aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{base_url.rstrip('/')}/health", allow_redirects=False) as response,
        ):
            report.facts.append(f"{base_url} answers (HTTP {response.status} to /health)")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        report.problems.append(f"{base_url} does not answer: {why}: start the server, or launch it")


async def _peers(config: Config) -> list[str]:
    orchestrator = await _accepts(config.orchestrator)
    running = await _accepts(config.listen)
    answers = "answers" if orchestrator else "does not answer: pools start, and get no work from it"
    notes = [f"orchestrator {config.orchestrator} {answers}"]
    if running:
        notes.append(f"{config.listen} is in use: a pool manager seems to run; free memory is less")
    return notes


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


def _size(size_bytes: int) -> str:
    if size_bytes < 1024 * _MIB:
        return f"{size_bytes / _MIB:.1f} MiB"
    return f"{size_bytes / (1024 * _MIB):.1f} GiB"


def report_lines(report: HostReport) -> list[str]:
    """The report for people, one line after another; problems are marked with "!"."""
    lines = ["devices"]
    lines += [f"  {line}" for line in report.devices] or ["  none"]
    lines.append("engines found")
    lines += [f"  {line}" for line in report.engines]
    for pool in report.pools:
        lines.append(f"pool {pool.pool_id}: {'cannot start' if pool.problems else 'ok'}")
        lines += [f"  {fact}" for fact in pool.facts]
        lines += [f"  ! {problem}" for problem in pool.problems]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"! {sentence}" for sentence in report.fatal]
    return lines
