# SPDX-License-Identifier: Apache-2.0
"""pools, status."""

import argparse
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llamaorch_client.aio import AsyncClient, JobFilter
from llamaorch_client.cli.cells import FREE_SLOTS, free_slots, gib, named, number, slowed, unwell
from llamaorch_client.cli.failure import ExitCode, span_text
from llamaorch_client.cli.output import Output
from llamaorch_client.errors import ErrorDetail, ServerError, UnavailableError
from llamaorch_client.model import JobState
from llamaorch_client.model_fleet import Capabilities, Pool
from llamaorch_client.request import Priority

POOL_COLUMNS = (
    "POOL",
    "STATE",
    "MODEL",
    "ENGINE",
    FREE_SLOTS,
    "CTX",
    "TOK/S",
    "HOST",
    "AGE",
    "DEVICES",
)
LIVE = (JobState.QUEUED, JobState.DISPATCHED, JobState.RUNNING)
# Enough for every queue that the server allows in practice; beyond it the count says "at least".
COUNTED_JOBS_MAX = 10_000
NO_POOLS = "no pools; start pool-managerd on a GPU host and point it at this server"
# A longer reason stands below the table.
REASON_CHARS = 48


@dataclass(frozen=True, slots=True)
class QueueSummary:
    """Jobs that wait and run now; `complete` is False when there are more than were counted."""

    queued_interactive: int
    queued_batch: int
    running: int
    capacity: int
    complete: bool


async def pools(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Lists pools and their devices, once or after every change until Ctrl-C."""
    if arguments.watch:
        return await _watch(arguments, out, client)
    found = await client.pools(correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record({"pools": found})
    else:
        _pools(found, out)
    return ExitCode.FINISHED


async def _watch(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    async for found in client.watch_pools(correlation_id=arguments.correlation_id):
        if out.as_json:
            out.record({"pools": found})
            continue
        rows = [_pool_row(pool) for pool in found]
        if not out.live_table(POOL_COLUMNS, rows, () if rows else (NO_POOLS,)):
            _pools(found, out)
    raise ended(client.target)


def ended(server: str) -> UnavailableError:
    """The error for a list of pools that a server ends, which lasts as long as it serves."""
    text = f"{server} ended the list of pools, as when it shuts down"
    return UnavailableError(ErrorDetail(text, "STREAM_CLOSED", "UNAVAILABLE"))


async def status(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Shows health, capabilities, pools and queue; 3 when the server is not serving."""
    correlation_id = arguments.correlation_id
    capabilities = await client.capabilities(correlation_id=correlation_id)
    health = await _health(client, correlation_id)
    found = await client.pools(correlation_id=correlation_id)
    queue = await _queue(client, capabilities.limits.queue_capacity, correlation_id)
    if out.as_json:
        out.record(
            {
                "server": client.target,
                "health": health,
                "capabilities": capabilities,
                "pools": found,
                "queue": queue,
            }
        )
    else:
        _status(client.target, health, capabilities, out)
        _queue_line(queue, out)
        if found:
            out.result(f"pools    {_readiness(found)}")
        out.result("")
        _pools(found, out)
    return ExitCode.FINISHED if health == "SERVING" else ExitCode.UNAVAILABLE


async def _health(client: AsyncClient, correlation_id: str | None) -> str:
    try:
        return await client.health(correlation_id=correlation_id)
    except ServerError:
        # A proxy in between may serve the product's services only.
        return "UNKNOWN"


async def _queue(client: AsyncClient, capacity: int, correlation_id: str | None) -> QueueSummary:
    counts: Counter[str] = Counter()
    listed = client.list_jobs(
        JobFilter(LIVE), limit=COUNTED_JOBS_MAX, page_size=500, correlation_id=correlation_id
    )
    async for job in listed:
        counts[job.priority if job.state is JobState.QUEUED else "running"] += 1
    return QueueSummary(
        queued_interactive=counts[Priority.INTERACTIVE],
        queued_batch=counts[Priority.BATCH],
        running=counts["running"],
        capacity=capacity,
        complete=counts.total() < COUNTED_JOBS_MAX,
    )


def _status(server: str, health: str, capabilities: Capabilities, out: Output) -> None:
    out.result(f"server   {server}: {health}, version {capabilities.server_version or '-'}")
    out.result(f"api      {capabilities.api_version or '-'}")
    ready = capabilities.models_ready
    others = [model_id for model_id in capabilities.model_ids if model_id not in ready]
    unready = f"; not ready: {', '.join(others)}" if others else ""
    out.result(f"models   {', '.join(ready) or 'none'}{unready}")
    out.result(f"features {', '.join(capabilities.features) or 'none'}")
    out.result(f"policy   {capabilities.queue_policy or '-'}")


def _queue_line(queue: QueueSummary, out: Output) -> None:
    waiting = queue.queued_interactive + queue.queued_batch
    more = "" if queue.complete else "at least "
    out.result(
        f"queue    {more}{waiting} of {queue.capacity} waiting "
        f"({queue.queued_interactive} interactive, {queue.queued_batch} batch), "
        f"{more}{queue.running} running"
    )


def _readiness(found: Sequence[Pool]) -> str:
    """How many pools take work, and which do not."""
    others = [f"{pool.pool_id} ({pool.state})" for pool in found if pool.state != "READY"]
    ready = f"{len(found) - len(others)} of {len(found)} ready"
    return f"{ready}; not ready: {named(others)}" if others else ready


def _pools(found: Sequence[Pool], out: Output) -> None:
    if not found:
        out.say(NO_POOLS)
        return
    out.table("", POOL_COLUMNS, [_pool_row(pool) for pool in found])
    for pool in found:
        whole = " ".join(pool.state_reason.split())
        if whole != _reason(pool):
            out.result(f"{pool.pool_id}: {whole}")


def _reason(pool: Pool) -> str:
    """The reason in one line that leaves room for the other columns."""
    return textwrap.shorten(pool.state_reason, REASON_CHARS, placeholder=" …")


def _pool_row(pool: Pool) -> Sequence[str]:
    state = pool.state
    reason = f": {_reason(pool)}" if pool.state_reason else ""
    devices = [
        f"{device.name or device.device_id} "
        f"{gib(device.memory_used_bytes)}/{gib(device.memory_total_bytes)}{unwell(device.health)}"
        for device in pool.devices
    ]
    return (
        pool.pool_id,
        state + reason,
        pool.model_id,
        f"{pool.engine} {pool.engine_version}".strip(),
        free_slots(pool.slots_free, pool.slots_total) if pool.connected else "-",
        number(pool.ctx_max),
        number(pool.tokens_per_s) + slowed(pool.perf_scale),
        pool.host_id,
        span_text(pool.snapshot_age_ms),
        "; ".join(devices) or "-",
    )
