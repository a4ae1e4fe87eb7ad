"""What is done before and after an engine starts: its model found, its memory judged and noted.

ORCH-3002, ORCH-3003, ORCH-3039, ORCH-3201, LO-204.

Memory that an ended engine leaves comes back a moment later, and another pool's engine may still be
loading: a pool that does not fit is looked at again with each new reading of its devices, for
`freed_memory_wait_ms`, and as long as another one loads into the same memory. Then it is refused
with every shortfall. The caller bounds the whole.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pool_managerd.clock import Clock
from pool_managerd.config.launch import AttachingTable
from pool_managerd.config.llama import EmbeddedTable
from pool_managerd.config.schema import PoolTable
from pool_managerd.core.device import Device
from pool_managerd.core.fit import (
    HOST,
    Estimate,
    LayerRun,
    Need,
    Room,
    Shortfall,
    human_bytes,
    merged,
    shortfalls,
)
from pool_managerd.core.ledger import Ledger
from pool_managerd.core.model_ref import shown_ref
from pool_managerd.core.tellable import BYTES_MAX
from pool_managerd.devices.host_memory import HostMemory, host_memory
from pool_managerd.engines.port import EngineInfo, PreloadError
from pool_managerd.models.files import (
    FoundModel,
    ModelFiles,
    reads_model,
    stated_digest,
    with_model,
    without_digest,
)
from pool_managerd.preflight.context import asked_context, served_less
from pool_managerd.preflight.memory import (
    MemoryPlan,
    Unknown,
    attached,
    device_name,
    memory_of,
    plan_memory,
)
from pool_managerd.preflight.port import Prepared
from pool_managerd.telemetry import log
from pool_managerd.threads import in_thread

LOOK_INTERVAL_MS = 250
"""Time between two looks at the devices while a pool waits for memory."""


async def pause(wait_ms: int) -> None:
    """Lets time pass."""
    await asyncio.sleep(wait_ms / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightDeps:
    """What the check works with.

    `devices` gives the latest facts of a pool's devices, in the order in which an engine is shown
    them; `read_at_ms` says when they were read, by the same clock.
    """

    clock: Clock
    files: ModelFiles
    ledger: Ledger
    devices: Callable[[PoolTable], tuple[Device, ...]]
    read_at_ms: Callable[[], int]
    wait_ms: int
    host_memory: Callable[[], HostMemory] = host_memory
    pause: Callable[[int], Awaitable[None]] = pause


@dataclass(frozen=True, slots=True)
class Review:
    """What a pool would take, bytes by memory; a sentence for each memory that is too small.

    `layers` is what of the model goes where, as far as that is known.
    """

    needs: Mapping[str, int]
    shortfalls: tuple[str, ...]
    notes: tuple[str, ...]
    layers: tuple[LayerRun, ...] = ()


@dataclass(slots=True)
class _Loading:
    """An engine that is being started: what was expected, and what was free before.

    `disturbed`: memories in which another engine began, loaded or ended meanwhile.
    """

    estimate: Estimate
    rooms: Mapping[str, Room]
    disturbed: set[str]


class HostPreflight:
    """The check of one host."""

    def __init__(self, deps: PreflightDeps) -> None:
        self._deps = deps
        self._loading: dict[str, _Loading] = {}
        self._doing: dict[str, str] = {}
        self._gone_at_ms = -1

    async def model(self, table: PoolTable, model_ref: str) -> Prepared:
        """See `Preflight.model`. Engines that are told no model here get the reference."""
        engine = table.engine
        if not reads_model(engine, model_ref):
            return Prepared(table, model_ref)
        assert isinstance(engine, EmbeddedTable | AttachingTable), "others read no model"
        wanted = model_ref or engine.model_ref
        expected = "" if model_ref else stated_digest(engine)
        if wanted:
            found = await self._found(table.pool_id, wanted)
        else:
            found = FoundModel(Path(engine.model_path))
        missing = await self._deps.files.shortfalls(engine, found.path)
        if missing:
            raise PreloadError(missing)
        if not found.path.is_file():
            changed = with_model(table, found.path, "")
            return Prepared(without_digest(changed) if model_ref else changed, "")
        digest = await self._deps.files.digest(found, expected)
        return Prepared(with_model(table, found.path, digest), "")

    async def memory(self, table: PoolTable) -> None:
        """See `Preflight.memory`."""
        planned = await self._planned(table)
        if planned is None:
            return
        if isinstance(planned, Unknown):
            log.warning("memory_unknown", pool_id=table.pool_id, human=planned.why)
            return
        # An engine that runs already has what it takes: there is nothing to refuse.
        if not attached(table.engine):
            try:
                if not isinstance(table.engine, EmbeddedTable):
                    # What it takes is known by what was free before, without the one that ended.
                    await self._read_since(self._gone_at_ms, table, planned.estimate)
                await self._until_fits(table, planned)
            finally:
                self._doing.pop(table.pool_id, None)
        needs = self._claim(table, planned.estimate)
        log.info(
            "memory_estimate",
            pool_id=table.pool_id,
            bytes_by_memory=needs,
            notes=list(planned.estimate.notes),
            stated=planned.estimate.stated,
            human="; ".join(f"{memory}: {human_bytes(size)}" for memory, size in needs.items()),
        )

    async def review(self, table: PoolTable) -> Review | None:
        """What the pool would take now, and what is short.

        A pool that would start is noted for the reviews of others.

        Nothing is waited for and nothing logged. None when nobody asked.
        """
        planned = await self._planned(table)
        if planned is None:
            return None
        if isinstance(planned, Unknown):
            return Review({}, (), (planned.why,))
        sentences: tuple[str, ...] = ()
        if not attached(table.engine):
            rooms = self._rooms(table)
            missing = shortfalls(planned.estimate, rooms, self._deps.ledger.beside(table.pool_id))
            sentences = await in_thread(partial(_sentences, planned, missing))
        if sentences and table.memory_check == "enforce":
            needs: Mapping[str, int] = _totals(planned.estimate, self._rooms(table))
        else:
            needs = self._claim(table, planned.estimate)
        return Review(needs, sentences, planned.estimate.notes, planned.estimate.layers)

    async def _planned(self, table: PoolTable) -> MemoryPlan | Unknown | None:
        if table.memory_check == "off":
            return None
        claims = self._deps.ledger.beside(table.pool_id)
        return await in_thread(partial(plan_memory, table, self._rooms(table), claims))

    def _claim(self, table: PoolTable, estimate: Estimate) -> dict[str, int]:
        rooms = self._rooms(table)
        needs = _totals(estimate, rooms)
        self._deps.ledger.claim(table.pool_id, needs)
        beside = {other for other in self._loading if other != table.pool_id}
        shared = {memory for other in beside for memory in self._disturb(other, needs)}
        self._loading[table.pool_id] = _Loading(estimate, rooms, shared)
        return needs

    def _disturb(self, pool_id: str, memories: Iterable[str]) -> set[str]:
        """Notes for an engine that loads that its memories change for other reasons too."""
        loading = self._loading[pool_id]
        shared = set(merged(loading.estimate.needs, loading.rooms)).intersection(memories)
        loading.disturbed |= shared
        return shared

    async def loaded(self, table: PoolTable, info: EngineInfo) -> None:
        """See `Preflight.loaded`."""
        await _tell_context(table, info.ctx_max)
        loading = self._loading.get(table.pool_id)
        if loading is None:
            return
        fresh = True
        if info.host_bytes is None and not loading.estimate.stated:
            now_ms = self._deps.clock.now_ms()
            fresh = await self._read_since(now_ms, table, loading.estimate)
        # It may have been stopped meanwhile, and another one started.
        if self._loading.get(table.pool_id) is not loading:
            return
        del self._loading[table.pool_id]
        taken = self._taken(table, info, loading) if fresh else {}
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
        self._gone_at_ms = self._deps.clock.now_ms()
        for other in self._loading:
            self._disturb(other, self._deps.ledger.entries(pool_id))
        self._deps.ledger.release(pool_id)

    def doing(self, pool_id: str) -> str:
        """See `Preflight.doing`."""
        return self._doing.get(pool_id, "")

    async def _found(self, pool_id: str, wanted: str) -> FoundModel:
        def progress(done: int, total: int | None) -> None:
            of_total = f" of {human_bytes(total)}" if total is not None else ""
            self._doing[pool_id] = f"fetching {shown_ref(wanted)}: {human_bytes(done)}{of_total}"

        try:
            return await self._deps.files.find(wanted, pool_id, progress)
        finally:
            self._doing.pop(pool_id, None)

    async def _until_fits(self, table: PoolTable, planned: MemoryPlan) -> None:
        pool_id, ledger, estimate = table.pool_id, self._deps.ledger, planned.estimate
        began_ms = self._deps.clock.now_ms()
        while True:
            rooms = self._rooms(table)
            missing = shortfalls(estimate, rooms, ledger.beside(pool_id))
            if not missing and not planned.impossible:
                return
            memories = frozenset(merged(estimate.needs, rooms))
            waited_ms = self._deps.clock.now_ms() - began_ms
            if planned.impossible:
                break
            if waited_ms >= self._deps.wait_ms and not ledger.loading_beside(pool_id, memories):
                break
            names = " and ".join(shortfall.name for shortfall in missing)
            self._doing[pool_id] = f"waiting for memory of {names}"
            await self._deps.pause(LOOK_INTERVAL_MS)
        # What would fit is found by many estimates, each as long as the file has tensors.
        sentences = await in_thread(partial(_sentences, planned, missing))
        if table.memory_check == "enforce":
            passing = not planned.impossible and all(each.passing for each in missing)
            raise PreloadError(sentences, passing=passing)
        log.warning("memory_short", pool_id=pool_id, shortfalls=sentences, human=sentences[0])

    async def _read_since(self, instant_ms: int, table: PoolTable, estimate: Estimate) -> bool:
        """Waits until the devices were read after `instant_ms`; False when they were not in time.

        The wait is at most `wait_ms`; for a pool that takes of the host alone there is none.
        """
        if not merged(estimate.needs, self._rooms(table)).keys() - {HOST}:
            return True
        began_ms = self._deps.clock.now_ms()
        while self._deps.read_at_ms() <= instant_ms:
            if self._deps.clock.now_ms() - began_ms >= self._deps.wait_ms:
                return False
            await self._deps.pause(LOOK_INTERVAL_MS)
        return True

    def _rooms(self, table: PoolTable) -> dict[str, Room]:
        host = self._deps.host_memory()
        rooms = {HOST: Room("the host", HOST, host.total, host.free)}
        for device in self._deps.devices(table):
            rooms[device.device_id] = Room(
                device_name(device),
                memory_of(device),
                device.memory_total_bytes,
                device.memory_free_bytes,
            )
        return rooms

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
        return {memory: min(need.total, BYTES_MAX) for memory, need in merged_needs.items()}

    def _difference(self, table: PoolTable, loading: _Loading) -> dict[str, int]:
        """What became less of the free memory of devices; the host's belongs to many programs."""
        taken = {}
        now = self._rooms(table)
        for place in loading.estimate.needs:
            before, after = loading.rooms.get(place), now.get(place)
            if before is None or after is None or before.memory == HOST:
                continue
            if before.memory in loading.disturbed:
                continue
            if before.free is not None and after.free is not None and before.free > after.free:
                taken[place] = before.free - after.free
        return taken


async def _tell_context(table: PoolTable, served: int) -> None:
    human = await in_thread(partial(served_less, table, served))
    if human:
        _, asked = asked_context(table.engine)
        log.warning(
            "context_cut",
            pool_id=table.pool_id,
            asked_tokens=asked,
            served_tokens=served,
            human=human,
        )


def _totals(estimate: Estimate, rooms: Mapping[str, Room]) -> dict[str, int]:
    """By memory, and no more than can be told: a damaged file may ask for anything."""
    needs = merged(estimate.needs, rooms)
    return {memory: min(need.total, BYTES_MAX) for memory, need in needs.items()}


def _sentences(planned: MemoryPlan, missing: tuple[Shortfall, ...]) -> tuple[str, ...]:
    advice = planned.advise() if missing else ""
    notes = "".join(f" ({note})" for note in planned.estimate.notes)
    return (
        *planned.impossible,
        *(shortfall.sentence(advice) + notes for shortfall in missing),
    )


def _comparison(memory: str, estimated: int, taken: int | None) -> str:
    if taken is None:
        return f"{memory}: {human_bytes(estimated)} were expected; the engine does not say more."
    return f"{memory}: {human_bytes(estimated)} were expected, {human_bytes(taken)} were taken."
