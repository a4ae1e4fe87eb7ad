# SPDX-License-Identifier: Apache-2.0
"""capabilities: what the server can do."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli.failure import ExitCode
from llamaorch_client.cli.output import Output
from llamaorch_client.model_fleet import ReplicaSet

COLUMNS = ("MODEL", "ENGINE", "AT ONCE", "SLOTS", "CTX", "POOLS", "EXTENSIONS", "DETERMINISTIC")


async def capabilities(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Shows versions, features, limits and what runs where (ORCH-3095, ORCH-3096)."""
    found = await client.capabilities(correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record({"capabilities": found})
        return ExitCode.FINISHED
    out.result(f"version  {found.server_version or '-'}, api {found.api_version or '-'}")
    out.result(f"policy   {found.queue_policy or '-'}")
    out.result(f"features {', '.join(found.features) or 'none'}")
    out.result("")
    out.table("", ("LIMIT", "VALUE"), [(key, str(n)) for key, n in asdict(found.limits).items()])
    out.result("")
    if found.replica_sets:
        out.table("", COLUMNS, [_row(each) for each in found.replica_sets])
        if found.replica_sets_omitted:
            out.say(f"and {found.replica_sets_omitted} more; `llorch pools` lists all pools")
    else:
        out.say("no pools, so no models")
    return ExitCode.FINISHED


def _row(each: ReplicaSet) -> Sequence[str]:
    ctx = f"{each.ctx_min}-{each.ctx_max}" if each.ctx_min < each.ctx_max else str(each.ctx_max)
    return (
        each.model_id,
        f"{each.engine} {each.engine_version}".strip() or "-",
        str(each.slots_ready),
        str(each.slots_total),
        ctx,
        ", ".join(each.pool_ids),
        ", ".join(each.extensions) or "-",
        "yes" if each.deterministic else "no",
    )
