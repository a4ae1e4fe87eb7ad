# SPDX-License-Identifier: Apache-2.0
"""jobs, explain."""

import argparse
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from llamaorch_client.aio import AsyncClient, JobFilter
from llamaorch_client.cli import deciding, job_ids
from llamaorch_client.cli.cells import number
from llamaorch_client.cli.clock import server_now
from llamaorch_client.cli.failure import ExitCode, span_text
from llamaorch_client.cli.output import Output
from llamaorch_client.model import (
    Decision,
    Exclusion,
    Explanation,
    FromCatalog,
    Job,
    JobState,
)

JOB_COLUMNS = ("JOB", "STATE", "CLASS", "MODEL", "POSITION", "STARTS IN", "POOL", "TOKENS", "AGE")


async def jobs(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Lists jobs, newest first."""
    where = JobFilter(tuple(JobState(s.upper()) for s in arguments.state), arguments.session)
    listed = client.list_jobs(where, limit=arguments.limit, correlation_id=arguments.correlation_id)
    found = [job async for job in listed]
    if out.as_json:
        out.record({"jobs": found})
    elif not found:
        out.say("no jobs")
    else:
        now = await server_now(client, arguments.correlation_id)
        out.table("", JOB_COLUMNS, [_job_row(job, now) for job in found])
    return ExitCode.FINISHED


async def explain(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Shows every placement decision of a job, or why it waits (LO-207)."""
    call = partial(client.explain, correlation_id=arguments.correlation_id)
    explanation = await job_ids.by_id(call, arguments.job_id, client, arguments.correlation_id)
    if out.as_json:
        out.record(explanation)
    else:
        _explain(explanation, out)
    return ExitCode.FINISHED


def _job_row(job: Job, now: datetime) -> Sequence[str]:
    age_ms = (now - job.accepted_at).total_seconds() * 1000 if job.accepted_at else None
    starts_ms = job.predicted_start_ms
    return (
        job.job_id,
        job.state.value,
        job.priority.value,
        job.model_id,
        number(job.queue_position),
        "-" if starts_ms is None else span_text(starts_ms),
        job.pool_id or "-",
        number(job.usage.tokens_out),
        "-" if age_ms is None else span_text(max(0.0, age_ms)),
    )


def _explain(explanation: Explanation, out: Output) -> None:
    job = explanation.job
    out.result(f"job {job.job_id}: {job.state.value}, model {job.model_id or '-'}")
    if job.from_catalog is not None:
        out.result(_from_catalog(job.from_catalog))
    if job.error is not None:
        out.result(f"outcome: {job.error.reason}: {job.error.message}")
    for decision in explanation.decisions:
        _decision(decision, out)
    told = deciding.wait(explanation)
    if told:
        out.result("")
        for line in told:
            out.result(line)
    elif explanation.waiting_for:
        # A server of an earlier version has no sentences for it.
        _exclusions("waits because", explanation.waiting_for, explanation.waiting_for_total, out)
    elif not explanation.decisions:
        out.result("no placement was decided")
    out.result(f"trace: {explanation.trace_id or '-'}")


def _from_catalog(added: FromCatalog) -> str:
    asked = f"asked for as {added.alias}, " if added.alias else ""
    filled = ", ".join(f"{name} {value}" for name, value in sorted(added.filled.items()))
    return f"catalog: {asked}revision {added.revision}, adds {filled or 'nothing'}"


def _decision(decision: Decision, out: Output) -> None:
    out.result("")
    passed = decision.declined_offers
    declined = f" and letting {passed} slots pass" if passed else ""
    out.result(
        f"attempt {decision.attempt}: {decision.pool_id} after waiting "
        f"{span_text(decision.waited_ms)}{declined}, decided by "
        f"{decision.decided_by} (rules version {decision.rules_version})"
    )
    titles, rows, gone = deciding.candidates(decision, out.width)
    out.table(f"candidates ({len(rows)} of {decision.candidates_total})", titles, rows)
    if gone:
        out.result(f"columns left out: {', '.join(gone)} (--json has them)")
    if decision.exclusions:
        _exclusions("excluded", decision.exclusions, decision.exclusions_total, out)
    if not decision.complete:
        out.result("the recording no longer holds this decision; only the best of it was kept")


def _exclusions(title: str, excluded: Sequence[Exclusion], total: int, out: Output) -> None:
    rows = deciding.exclusions(excluded)
    out.table(f"{title} ({len(excluded)} of {total})", deciding.EXCLUSION_COLUMNS, rows)
    for sentence in deciding.remedies(excluded):
        out.result(sentence)
