# SPDX-License-Identifier: Apache-2.0
"""drain, undrain, reload."""

import argparse
import contextlib
import difflib
import shlex
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli.failure import ExitCode, own_record
from llamaorch_client.cli.fleet import ended
from llamaorch_client.cli.output import Output
from llamaorch_client.errors import NotFoundError
from llamaorch_client.model_fleet import Pool, Reloaded, ReloadOutcome

POOLS_NAMED = 8

_RELOADS = {
    ReloadOutcome.ROLLED_BACK: "rolled back, the pool serves its former model",
    ReloadOutcome.FAILED: "the model could not be loaded anew, the host goes on trying",
    ReloadOutcome.SUPERSEDED: "superseded",
    ReloadOutcome.UNKNOWN: "it is not known what became of it",
    ReloadOutcome.UNSPECIFIED: "what became of it is not known to this version",
}


async def drain(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Drains a pool; with `--wait` returns once nothing runs there. OC-CTRL-2002."""
    correlation_id = arguments.correlation_id
    async with _naming_pools(arguments.pool_id, client):
        pool = await client.drain_pool(
            arguments.pool_id, timeout_s=arguments.deadline, correlation_id=correlation_id
        )
    if arguments.wait:
        return await _wait(arguments.pool_id, out, client, correlation_id)
    return _told(pool, out)


async def undrain(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Lets a drained pool take work again."""
    async with _naming_pools(arguments.pool_id, client):
        pool = await client.undrain_pool(arguments.pool_id, correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record({"pool": pool})
    else:
        out.result(f"{pool.pool_id} takes work again")
    return ExitCode.FINISHED


async def reload(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Loads a pool's model anew, or another one; 1 when that is not what it serves now."""
    out.progress(f"{arguments.pool_id} is reloaded once nothing runs there")
    async with _naming_pools(arguments.pool_id, client):
        told = await client.reload_pool(
            arguments.pool_id,
            arguments.model,
            timeout_s=arguments.deadline,
            correlation_id=arguments.correlation_id,
        )
    out.end_progress()
    done = told.outcome is ReloadOutcome.DONE
    if out.as_json:
        out.record({"reload": told})
    elif done:
        out.result(f"{arguments.pool_id} serves {told.pool.model_id} {told.pool.model_digest}")
    else:
        out.say(f"llorch: {_RELOADS[told.outcome]}: {told.detail}{_again(told, arguments)}", "red")
    return ExitCode.FINISHED if done else ExitCode.JOB_FAILED


def _again(told: Reloaded, arguments: argparse.Namespace) -> str:
    """What to do once what was wrong with the model is mended."""
    if told.outcome is not ReloadOutcome.ROLLED_BACK or not arguments.model:
        return ""
    words = ["llorch", "reload", arguments.pool_id, "--model", arguments.model]
    return f"; mend that, then `{shlex.join(words)}`"


def nearest(pool_id: str, ids: Iterable[str]) -> list[str]:
    """Ids of pools, those that are spelt like `pool_id` first."""

    def unlike(known: str) -> float:
        return -difflib.SequenceMatcher(None, pool_id.lower(), known.lower()).ratio()

    return sorted(sorted(ids), key=unlike)


@contextlib.asynccontextmanager
async def _naming_pools(pool_id: str, client: AsyncClient) -> AsyncGenerator[None, None]:
    """Adds to the error about an unknown pool those that there are."""
    try:
        yield
    except NotFoundError as error:
        ids = nearest(pool_id, [pool.pool_id for pool in await client.pools()])
        shown = ", ".join(ids[:POOLS_NAMED])
        more = f" and {len(ids) - POOLS_NAMED} more" if len(ids) > POOLS_NAMED else ""
        known = f"those that are: {shown}{more}" if ids else "none is"
        detail = replace(error.detail, message=f"{error.message}; {known}")
        raise NotFoundError(detail) from error


async def _wait(
    pool_id: str, out: Output, client: AsyncClient, correlation_id: str | None
) -> ExitCode:
    async for pools in client.watch_pools(correlation_id=correlation_id):
        pool = next((pool for pool in pools if pool.pool_id == pool_id), None)
        if pool is None:
            return _over(f"pool {pool_id} is gone", out)
        if pool.drain is None:
            return _over(f"somebody ended the drain of {pool_id}", out)
        if not pool.drain.running_attempts:
            out.end_progress()
            return _told(pool, out)
        out.progress(_sentence(pool))
    raise ended(client.target)


def _over(text: str, out: Output) -> ExitCode:
    """The drain will not come to its end."""
    out.say(f"llorch: {text}", "red")
    if out.as_json:
        out.record({"error": own_record("Drain", text, ExitCode.JOB_FAILED)})
    return ExitCode.JOB_FAILED


def _told(pool: Pool, out: Output) -> ExitCode:
    if out.as_json:
        out.record({"pool": pool})
    else:
        out.result(_sentence(pool))
    return ExitCode.FINISHED


def _sentence(pool: Pool) -> str:
    running = pool.drain.running_attempts if pool.drain is not None else 0
    if not running or pool.drain is None:
        return f"{pool.pool_id} drains: nothing runs there, and nothing new will"
    until = pool.drain.until
    what = "1 job still runs" if running == 1 else f"{running} jobs still run"
    told = f"{pool.pool_id} drains: {what} there, and no other begins"
    if until is None:
        return told
    return f"{told}; what runs at {until.astimezone():%H:%M:%S} is stopped then"
