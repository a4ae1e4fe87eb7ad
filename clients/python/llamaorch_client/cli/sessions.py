# SPDX-License-Identifier: Apache-2.0
"""sessions: list, show, delete."""

import argparse
from collections.abc import Sequence
from datetime import datetime

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli.clock import server_now
from llamaorch_client.cli.failure import ExitCode, UsageError, span_text
from llamaorch_client.cli.output import Output
from llamaorch_client.model import Session
from llamaorch_client.request import Budgets

COLUMNS = ("SESSION", "TURNS", "LIVE JOBS", "WARM AT", "KV TOKENS", "TOKENS", "LEFT", "ENDS IN")
KINDS = (("tokens", "tokens"), ("time_ms", "time, ms"), ("cost_micros", "cost, millionths"))


async def sessions(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Lists sessions, shows one with its budgets, or forgets one (ORCH-3021, ORCH-3022)."""
    correlation_id = arguments.correlation_id
    if (arguments.action == "list") == bool(arguments.session_id):
        raise UsageError("write llorch sessions, or llorch sessions show|delete SESSION")
    if arguments.action == "delete":
        await client.delete_session(arguments.session_id, correlation_id=correlation_id)
        if out.as_json:
            out.record({"deleted": arguments.session_id})
        else:
            out.result(f"session {arguments.session_id} is forgotten; its jobs run on")
        return ExitCode.FINISHED
    if arguments.action == "show":
        session = await client.get_session(arguments.session_id, correlation_id=correlation_id)
        if out.as_json:
            out.record({"session": session})
        else:
            _show(session, await server_now(client, correlation_id), out)
        return ExitCode.FINISHED
    found = [s async for s in client.list_sessions(correlation_id=correlation_id)]
    if out.as_json:
        out.record({"sessions": found})
    elif not found:
        out.say("no sessions")
    else:
        now = await server_now(client, correlation_id)
        out.table("", COLUMNS, [_row(session, now) for session in found])
    return ExitCode.FINISHED


def _row(session: Session, now: datetime) -> Sequence[str]:
    return (
        session.session_id,
        f"{session.turns}/{session.turns_max}",
        str(len(session.job_ids)),
        session.warm_pool_id or "-",
        _number(session.kv_tokens),
        _number(session.spent.tokens),
        _number(session.remaining.tokens if session.remaining else None),
        _ends_in(session, now),
    )


def _show(session: Session, now: datetime, out: Output) -> None:
    out.result(
        f"session {session.session_id}: turn {session.turns} of {session.turns_max}, "
        f"ends in {_ends_in(session, now)}"
    )
    held = "" if session.kv_tokens is None else f" ({session.kv_tokens} tokens)"
    out.result(f"cache: {session.warm_pool_id or 'nowhere'}{held}")
    out.result(f"live jobs: {', '.join(session.job_ids) or '-'}")
    none = Budgets()
    amounts = (session.budgets or none, session.spent, session.reserved, session.remaining or none)
    rows = [(name, *(_number(getattr(amount, kind)) for amount in amounts)) for kind, name in KINDS]
    out.table("", ("", "BUDGET", "SPENT", "SET ASIDE", "LEFT"), rows)


def _ends_in(session: Session, now: datetime) -> str:
    """How long it lives if it stays silent; "-" while jobs of it have not ended."""
    if session.expires_at is None:
        return "-"
    return span_text(max(0.0, (session.expires_at - now).total_seconds() * 1000))


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
