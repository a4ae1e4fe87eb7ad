"""What is done before and after an engine starts: its model found, its memory judged and noted.

ORCH-3002, ORCH-3003, ORCH-3039, LO-204.

Memory that an ended engine leaves comes back a moment later, and another pool's engine may still be
loading: a pool that does not fit is looked at again with each new reading of its devices, for
`freed_memory_wait_ms`, and as long as another one loads into the same memory. Then it is refused
with every shortfall. The caller bounds the whole.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, assert_never

import psutil

from pool_managerd.clock import Clock
from pool_managerd.config import PoolTable
from pool_managerd.config_engines import EmbeddedEngine, LlamaServerEngine, MockEngine
from pool_managerd.core.device import Device, DeviceKind
from pool_managerd.core.fit import (
    HOST,
    Estimate,
    Need,
    Room,
    human_bytes,
    merged,
    shortfalls,
)
from pool_managerd.core.gguf_fit import PAD_TOKENS, GgufModel, LoadPlan, gguf_estimate
from pool_managerd.core.kv_size import DimensionsError
from pool_managerd.core.ledger import Ledger
from pool_managerd.devices.cpu import DEVICE_ID as CPU_DEVICE_ID
from pool_managerd.engines.embedded_worker import batch_tokens
from pool_managerd.engines.gguf_file import gguf_shortfalls
from pool_managerd.engines.gguf_kv import read_model
from pool_managerd.engines.gguf_metadata import MetadataError
from pool_managerd.engines.port import EngineInfo, PreloadError
from pool_managerd.model_files import FoundModel, ModelFiles
from pool_managerd.telemetry import log

LOOK_INTERVAL_MS = 250
"""Time between two looks at the devices while a pool waits for memory."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The memory of this machine, bytes; `free` is what programs can have without swapping."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine is started with.

    The pool's table with its model found, and a reference for engines that choose their model
    themselves.
    """

    table: PoolTable
    model_ref: str


class Preflight(Protocol):
    """What a pool asks before and after its engine starts."""

    async def model(self, table: PoolTable, model_ref: str) -> Prepared:
        """Finds the model, fetching it if need be; may take hours.

        Raises:
            PreloadError: naming what is missing.
        """
        ...

    async def memory(self, table: PoolTable) -> None:
        """Waits for memory and claims it.

        Raises:
            PreloadError: naming every memory that is too small.
        """
        ...

    def loaded(self, table: PoolTable, info: EngineInfo) -> None:
        """Notes what a started engine took."""
        ...

    def gone(self, pool_id: str) -> None:
        """Notes that the pool's engine has ended. Idempotent."""
        ...


class NoPreflight:
    """Judges nothing: for hosts whose engines take no memory, as in simulations."""

    async def model(self, table: PoolTable, model_ref: str) -> Prepared:
        """Leaves everything as it is."""
        return Prepared(table, model_ref)

    async def memory(self, table: PoolTable) -> None:
        """Finds that everything fits."""

    def loaded(self, table: PoolTable, info: EngineInfo) -> None:
        """Notes nothing."""

    def gone(self, pool_id: str) -> None:
        """Notes nothing."""


def host_memory() -> HostMemory:
    """What the system says; reads one file of /proc."""
    memory = psutil.virtual_memory()
    return HostMemory(memory.total, memory.available)


async def pause(wait_ms: int) -> None:
    """Lets time pass."""
    await asyncio.sleep(wait_ms / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightDeps:
    """What the check works with.

    `devices` gives the latest facts of a pool's devices, in the order in which an engine is shown
    them.
    """

    clock: Clock
    files: ModelFiles
    ledger: Ledger
    devices: Callable[[PoolTable], tuple[Device, ...]]
    wait_ms: int
    host_memory: Callable[[], HostMemory] = host_memory
    pause: Callable[[int], Awaitable[None]] = pause


@dataclass(slots=True)
class _Loading:
    """An engine that is being started: what was expected, and what was free before."""

    estimate: Estimate
    rooms: Mapping[str, Room]


class HostPreflight:
    """The check of one host."""

    def __init__(self, deps: PreflightDeps) -> None:
        self._deps = deps
        self._loading: dict[str, _Loading] = {}

    async def model(self, table: PoolTable, model_ref: str) -> Prepared:
        """See `Preflight.model`. Engines that read no model file here get the reference."""
        engine = table.engine
        if not isinstance(engine, EmbeddedEngine):
            return Prepared(table, model_ref)
        wanted = model_ref or engine.model_ref
        expected = "" if model_ref else engine.model_digest
        if wanted:
            found = await self._deps.files.find(wanted, table.pool_id)
        else:
            found = FoundModel(Path(engine.model_path))
        missing = await asyncio.to_thread(gguf_shortfalls, found.path)
        if missing:
            raise PreloadError(missing)
        digest = await self._deps.files.digest(found, expected)
        update = {"model_ref": "", "model_path": str(found.path), "model_digest": digest}
        return Prepared(table.model_copy(update={"engine": engine.model_copy(update=update)}), "")

    async def memory(self, table: PoolTable) -> None:
        """See `Preflight.memory`."""
        if table.memory_check == "off":
            return
        rooms = self._rooms(table)
        wanted = await asyncio.to_thread(self._wanted, table, rooms)
        if wanted is None:
            return
        estimate, advise = wanted
        attached = isinstance(table.engine, LlamaServerEngine)
        if not attached:
            await self._until_fits(table, estimate, advise)
        needs = merged(estimate.needs, rooms)
        self._deps.ledger.claim(
            table.pool_id, {memory: need.total for memory, need in needs.items()}
        )
        self._loading[table.pool_id] = _Loading(estimate, self._rooms(table))
        log.info(
            "memory_estimate",
            pool_id=table.pool_id,
            notes=list(estimate.notes),
            stated=estimate.stated,
            **{f"{memory}_bytes": need.total for memory, need in needs.items()},
            human="; ".join(f"{m}: {human_bytes(n.total)}" for m, n in needs.items()),
        )

    def loaded(self, table: PoolTable, info: EngineInfo) -> None:
        """See `Preflight.loaded`."""
        loading = self._loading.pop(table.pool_id, None)
        if loading is None:
            return
        taken = self._taken(table, info, loading)
        self._deps.ledger.settle(table.pool_id, taken)
        for memory, entry in self._deps.ledger.entries(table.pool_id).items():
            log.info(
                "memory_taken",
                pool_id=table.pool_id,
                memory=memory,
                estimated_bytes=entry.estimated,
                taken_bytes=entry.taken,
                human=_comparison(memory, entry.estimated, entry.taken),
            )

    def gone(self, pool_id: str) -> None:
        """See `Preflight.gone`."""
        self._loading.pop(pool_id, None)
        self._deps.ledger.release(pool_id)

    async def _until_fits(
        self, table: PoolTable, estimate: Estimate, advise: Callable[[], str]
    ) -> None:
        pool_id, ledger = table.pool_id, self._deps.ledger
        began_ms = self._deps.clock.now_ms()
        while True:
            rooms = self._rooms(table)
            missing = shortfalls(estimate, rooms, ledger.beside(pool_id))
            if not missing:
                return
            memories = frozenset(merged(estimate.needs, rooms))
            waited_ms = self._deps.clock.now_ms() - began_ms
            if waited_ms >= self._deps.wait_ms and not ledger.loading_beside(pool_id, memories):
                break
            await self._deps.pause(LOOK_INTERVAL_MS)
        advice = advise()
        notes = "".join(f" ({note})" for note in estimate.notes)
        sentences = [shortfall.sentence(advice) + notes for shortfall in missing]
        if table.memory_check == "enforce":
            raise PreloadError(sentences)
        log.warning("memory_short", pool_id=pool_id, shortfalls=sentences, human=sentences[0])

    def _rooms(self, table: PoolTable) -> dict[str, Room]:
        host = self._deps.host_memory()
        rooms = {HOST: Room("the host", HOST, host.total, host.free)}
        for device in self._deps.devices(table):
            rooms[device.device_id] = Room(
                _name(device),
                memory_of(device, host.total),
                device.memory_total_bytes,
                device.memory_free_bytes,
            )
        return rooms

    def _wanted(
        self, table: PoolTable, rooms: Mapping[str, Room]
    ) -> tuple[Estimate, Callable[[], str]] | None:
        """The estimate, and who advises when it is too much; None when nothing is known. Blocks."""
        stated = _stated(table, rooms)
        if stated is not None:
            return stated, lambda: "lower the pool's vram_claim, or use another device"
        match table.engine:
            case EmbeddedEngine() as engine:
                try:
                    model = read_model(Path(engine.model_path))
                except (MetadataError, DimensionsError, OSError) as error:
                    log.warning("memory_unknown", pool_id=table.pool_id, error=str(error))
                    return None
                plan = _plan(table, engine, rooms)
                claims = self._deps.ledger.beside(table.pool_id)

                def fits(changed: LoadPlan) -> bool:
                    return not shortfalls(gguf_estimate(model, changed), rooms, claims)

                return gguf_estimate(model, plan), lambda: advice(model, plan, fits)
            case LlamaServerEngine() | MockEngine():
                return None
            case engine:
                assert_never(engine)

    def _taken(self, table: PoolTable, info: EngineInfo, loading: _Loading) -> dict[str, int]:
        """Bytes by memory that the engine took, as far as anybody can tell."""
        if loading.estimate.stated:
            return {}
        if info.host_bytes is None:
            return self._difference(table, loading)
        devices = [device.device_id for device in self._deps.devices(table)]
        reported = dict(zip(devices, info.device_bytes, strict=False))
        needs = {
            place: Need(
                weights=info.host_bytes if place == HOST else reported[place],
                context=need.context,
            )
            for place, need in loading.estimate.needs.items()
            if place == HOST or place in reported
        }
        merged_needs = merged(needs, loading.rooms)
        return {memory: need.total for memory, need in merged_needs.items()}

    def _difference(self, table: PoolTable, loading: _Loading) -> dict[str, int]:
        """What became less of the free memory of devices; the host's belongs to many programs."""
        taken = {}
        now = self._rooms(table)
        for place in loading.estimate.needs:
            before, after = loading.rooms.get(place), now.get(place)
            if before is None or after is None or before.memory == HOST:
                continue
            if before.free is not None and after.free is not None and before.free > after.free:
                taken[place] = before.free - after.free
        return taken


def memory_of(device: Device, host_total: int) -> str:
    """The memory that a device uses: its own, or the host's where they are one. LO-205."""
    unified = device.memory_total_bytes == host_total
    return HOST if device.kind is DeviceKind.CPU or unified else device.device_id


def advice(model: GgufModel, plan: LoadPlan, fits: Callable[[LoadPlan], bool]) -> str:
    """What to change so that the engine fits: what helps by itself first. O(log) estimates."""
    slots = _most(plan.slots - 1, lambda count: fits(replace(plan, slots=count)))
    if slots:
        return f"slots = {slots} would fit instead of {plan.slots}, or use another device"
    for base, words in ((plan, ""), (replace(plan, slots=1), "slots = 1 and ")):
        ctx_tokens = _longest(base, fits)
        if ctx_tokens:
            return f"{words}ctx_per_slot = {ctx_tokens} would fit, or use another device"
    if plan.gpu_layers:
        layers = model.layer_count + 1
        most = layers if plan.gpu_layers < 0 else min(plan.gpu_layers, layers)
        found = _most(most - 1, lambda count: fits(replace(plan, gpu_layers=count)))
        if found:
            return f"gpu_layers = {found} would fit, or use another device"
    return "use another device, or a model file of fewer bits or parameters"


def _longest(plan: LoadPlan, fits: Callable[[LoadPlan], bool]) -> int:
    """The longest context that fits, 0 for none."""
    steps = (plan.ctx_per_slot - 1) // PAD_TOKENS
    return PAD_TOKENS * _most(
        steps, lambda count: fits(replace(plan, ctx_per_slot=count * PAD_TOKENS))
    )


def _most(highest: int, works: Callable[[int], bool]) -> int:
    """The largest number up to `highest` that works, where smaller ones do too; 0 for none."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        if works(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _plan(table: PoolTable, engine: EmbeddedEngine, rooms: Mapping[str, Room]) -> LoadPlan:
    devices = [place for place in rooms if place not in (HOST, CPU_DEVICE_ID)]
    stated = dict(zip(table.devices, table.tensor_split, strict=False))
    shares = {
        device: stated.get(device, 0) if stated else (rooms[device].free or 1) for device in devices
    }
    return LoadPlan(
        slots=engine.slots,
        ctx_per_slot=engine.ctx_per_slot,
        batch_tokens=batch_tokens(engine.slots, engine.gpu_layers),
        gpu_layers=engine.gpu_layers,
        shares=shares if engine.gpu_layers else {},
    )


def _stated(table: PoolTable, rooms: Mapping[str, Room]) -> Estimate | None:
    """What the operator says that the engine takes, by device; None when nothing is said."""
    devices = [place for place in rooms if place != HOST] or [HOST]
    if table.vram_claim_ratio is not None:
        shares = {d: int((rooms[d].total or 0) * table.vram_claim_ratio) for d in devices}
    elif table.vram_claim_bytes is not None:
        stated = dict(zip(table.devices, table.tensor_split, strict=False))
        weights = {d: stated.get(d, 0) if stated else 1 for d in devices}
        whole = sum(weights.values()) or 1
        shares = {d: table.vram_claim_bytes * weights[d] // whole for d in devices}
    else:
        return None
    needs = {device: Need(weights=size) for device, size in shares.items()}
    return Estimate(needs, ("as the configuration states",), stated=True)


def _name(device: Device) -> str:
    if device.kind is DeviceKind.CPU:
        return "the host"
    number = f"GPU {device.index}" if device.index is not None else device.device_id
    return f"{number} ({device.name})" if device.name else number


def _comparison(memory: str, estimated: int, taken: int | None) -> str:
    if taken is None:
        return f"{memory}: {human_bytes(estimated)} were expected; the engine does not say more."
    return f"{memory}: {human_bytes(estimated)} were expected, {human_bytes(taken)} were taken."
