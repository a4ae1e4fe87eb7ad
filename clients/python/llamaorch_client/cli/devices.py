# SPDX-License-Identifier: Apache-2.0
"""devices: what the GPUs of all hosts do now, as a table that stays up to date on a terminal."""

import argparse
import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import grpc

from llamaorch.pool.v1 import pool_manager_service_pb2 as manager_pb2
from llamaorch.pool.v1 import snapshot_pb2
from llamaorch.pool.v1.pool_manager_service_pb2_grpc import PoolManagerServiceStub
from llamaorch_client.aio import AsyncClient
from llamaorch_client.channel import open_channel
from llamaorch_client.cli import access
from llamaorch_client.cli.cells import gib, slowed, unwell
from llamaorch_client.cli.failure import ExitCode, UsageError
from llamaorch_client.cli.output import Output
from llamaorch_client.errors import from_rpc_error
from llamaorch_client.metadata import call_metadata, checked_correlation_id
from llamaorch_client.model_fleet import Pool

COLUMNS = ("HOST", "DEVICE", "MEMORY", "USED", "BUSY", "TEMP", "POWER", "NOTES", "POOLS")
HOST_TIMEOUT_S = 2.0
HOST_MEMORY = "host"
_REFUSED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# Clocks that are low because nothing runs, or because somebody set them so, are not throttled.
# Source: nvml.h, nvmlClocksEventReason GpuIdle, ApplicationsClocksSetting, DisplayClockSetting.
_BY_CHOICE = 0x1 | 0x2 | 0x100


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One device of one host; what is not reported is None.

    `pools`: each with its state, and what its engine takes of this device where that is known.
    """

    host_id: str
    device_id: str
    name: str = ""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_ratio: float | None = None
    temperature_celsius: int | None = None
    power_milliwatts: int | None = None
    health: str = ""
    health_detail: str = ""
    notes: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()


async def devices(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Shows devices once, or again and again on a terminal until Ctrl-C."""
    code = ExitCode.FINISHED
    while True:
        rows, silent = await _read(arguments, client)
        code = ExitCode.UNAVAILABLE if silent else ExitCode.FINISHED
        if out.as_json:
            out.record({"devices": rows, "silent_hosts": silent})
            return code
        cells = [_cells(row) for row in rows]
        if arguments.once or not out.live_table(COLUMNS, cells, [_silence(s) for s in silent]):
            break
        await asyncio.sleep(arguments.interval_s)
    if rows:
        out.table("", COLUMNS, cells)
    elif not silent:
        out.say("no devices; start pool-managerd on a GPU host and point it at this server")
    for sentence in silent:
        out.say(_silence(sentence))
    return code


async def _read(
    arguments: argparse.Namespace, client: AsyncClient
) -> tuple[list[DeviceRow], list[str]]:
    """All rows, and the addresses of hosts that do not answer."""
    if not arguments.host:
        pools = await client.pools(correlation_id=arguments.correlation_id)
        return merged(row for pool in pools for row in _of_pool(pool)), []
    answers = await asyncio.gather(*(_ask(address, arguments) for address in arguments.host))
    silent = [
        address for address, rows in zip(arguments.host, answers, strict=True) if rows is None
    ]
    return merged(row for rows in answers if rows is not None for row in rows), silent


async def _ask(address: str, arguments: argparse.Namespace) -> list[DeviceRow] | None:
    """Rows of one host, straight from its pool manager; None when it does not answer."""
    options = access.options(arguments)
    metadata = call_metadata(checked_correlation_id(None), options.token, None)
    async with open_channel(address, options) as channel:
        try:
            answer = await PoolManagerServiceStub(channel).GetSnapshots(
                manager_pb2.GetSnapshotsRequest(), timeout=HOST_TIMEOUT_S, metadata=metadata
            )
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
            if code is grpc.StatusCode.UNIMPLEMENTED:
                told = f"{address} is no pool-managerd, it may be orchestratord"
                raise UsageError(
                    f"{told}: name the `listen` of the host, 7071 unless set"
                ) from error
            if isinstance(error, grpc.aio.AioRpcError) and code in _REFUSED:
                raise from_rpc_error(error, "", address) from error
            return None
    return [row for snapshot in answer.pools for row in of_snapshot(snapshot)]


def merged(rows: Iterable[DeviceRow]) -> list[DeviceRow]:
    """One row for each device of each host, with all its pools; sorted."""
    found: dict[tuple[str, str], DeviceRow] = {}
    for row in rows:
        key = (row.host_id, row.device_id)
        known = found.get(key)
        found[key] = replace(row, pools=(*known.pools, *row.pools)) if known else row
    return [found[key] for key in sorted(found)]


def _of_pool(pool: Pool) -> list[DeviceRow]:
    notes = () if pool.connected else ("not connected",)
    return [
        DeviceRow(
            host_id=pool.host_id,
            device_id=device.device_id,
            name=device.name,
            memory_total_bytes=device.memory_total_bytes,
            memory_used_bytes=device.memory_used_bytes,
            utilization_ratio=device.utilization_ratio,
            temperature_celsius=device.temperature_celsius,
            health=device.health,
            health_detail=device.health_detail,
            notes=notes,
            pools=(f"{pool.pool_id} {pool.state}{slowed(pool.perf_scale)}",),
        )
        for device in pool.devices
    ]


def of_snapshot(snapshot: snapshot_pb2.PoolSnapshot) -> list[DeviceRow]:
    """The devices of a pool as its pool manager tells of them."""
    state = snapshot_pb2.PoolState.Name(snapshot.state).removeprefix("POOL_STATE_")
    scale = slowed(snapshot.perf_scale if snapshot.HasField("perf_scale") else 1.0)
    return [
        DeviceRow(
            host_id=snapshot.host_id,
            device_id=device.device_id,
            name=device.name,
            memory_total_bytes=_known(device, "memory_total_bytes"),
            memory_used_bytes=_known(device, "memory_used_bytes"),
            utilization_ratio=(
                device.utilization_ratio if device.HasField("utilization_ratio") else None
            ),
            temperature_celsius=_known(device, "temperature_celsius"),
            power_milliwatts=_known(device, "power_milliwatts"),
            health=_health(device.health),
            health_detail=device.health_detail,
            notes=_notes(device),
            pools=(f"{snapshot.pool_id} {state}{scale}{_taken(snapshot, device)}",),
        )
        for device in snapshot.devices
    ]


def _health(number: int) -> str:
    """The name of a health; empty for none, and for one that is newer than this client."""
    names = {int(value): name for name, value in snapshot_pb2.DeviceHealth.items() if value}
    return names.get(number, "").removeprefix("DEVICE_HEALTH_")


def _taken(snapshot: snapshot_pb2.PoolSnapshot, device: snapshot_pb2.Device) -> str:
    """What the pool's engine takes of the memory that the device uses, and what was expected."""
    shared = device.kind == snapshot_pb2.DEVICE_KIND_CPU or device.memory_is_host_memory
    memory = HOST_MEMORY if shared else device.device_id
    for claim in snapshot.memory_claims:
        if claim.memory == memory and claim.HasField("taken_bytes"):
            return f", takes {gib(claim.taken_bytes)} (expected {gib(claim.estimated_bytes)})"
        if claim.memory == memory:
            return f", expected to take {gib(claim.estimated_bytes)}"
    return ""


def _known(device: snapshot_pb2.Device, name: str) -> int | None:
    # The names are those of optional fields of the message.
    return int(getattr(device, name)) if device.HasField(name) else None  # type: ignore[arg-type]


def _notes(device: snapshot_pb2.Device) -> tuple[str, ...]:
    notes = []
    if device.clock_event_reasons & ~_BY_CHOICE:
        notes.append("throttled")
    if device.ecc_uncorrected_total:
        notes.append(f"{device.ecc_uncorrected_total} ECC errors")
    if device.HasField("last_xid"):
        notes.append(f"XID {device.last_xid}")
    return tuple(notes)


def _unwell(row: DeviceRow) -> tuple[str, ...]:
    health = unwell(row.health).strip()
    return (f"{health}: {row.health_detail}",) if health else ()


def _silence(address: str) -> str:
    return f"{address} does not answer: is pool-managerd running there?"


def _cells(row: DeviceRow) -> Sequence[str]:
    percent = None if row.utilization_ratio is None else f"{100 * row.utilization_ratio:.0f} %"
    power = None if row.power_milliwatts is None else f"{row.power_milliwatts / 1000:.0f} W"
    degrees = None if row.temperature_celsius is None else f"{row.temperature_celsius} C"
    return (
        row.host_id,
        f"{row.name or '-'} ({row.device_id})",
        gib(row.memory_total_bytes),
        gib(row.memory_used_bytes),
        percent or "-",
        degrees or "-",
        power or "-",
        ", ".join((*_unwell(row), *row.notes)) or "-",
        "; ".join(row.pools),
    )
