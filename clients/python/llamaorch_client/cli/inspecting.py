# SPDX-License-Identifier: Apache-2.0
"""jobs, explain."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from llamaorch_client.aio import AsyncClient, JobFilter
from llamaorch_client.cli.failure import ExitCode, seconds
from llamaorch_client.cli.output import Output
from llamaorch_client.model import (
    Decision,
    Exclusion,
    Explanation,
    FromCatalog,
    Job,
    JobState,
    SnapshotFacts,
)

GIB = 2**30
# Of the snapshot that a candidate was judged by.
FACT_COLUMNS = ("FREE/SLOTS", "VRAM FREE", "TOK/S", "PREFILL/S")
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
        now = datetime.now(UTC)
        out.table("", JOB_COLUMNS, [_job_row(job, now) for job in found])
    return ExitCode.FINISHED


async def explain(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Shows every placement decision of a job, or why it waits (LO-207)."""
    explanation = await client.explain(arguments.job_id, correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record(explanation)
    else:
        _explain(explanation, out)
    return ExitCode.FINISHED


def number(value: float | None) -> str:
    """Returns a number for a table; "-" for what is not known."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def gib(value_bytes: int | None) -> str:
    """Returns bytes as GiB for a table."""
    return "-" if value_bytes is None else f"{value_bytes / GIB:.1f} GiB"


def slowed(perf_scale: float) -> str:
    """Returns what stands behind a rate while devices lower their clocks; nothing at full speed."""
    return "" if perf_scale == 1.0 else f" (at {perf_scale:.0%})"


def unwell(health: str) -> str:
    """Returns what stands behind a device that cannot be used; nothing for others."""
    return "" if health in ("", "OK") else f" {health}"


def _job_row(job: Job, now: datetime) -> Sequence[str]:
    age_ms = (now - job.accepted_at).total_seconds() * 1000 if job.accepted_at else None
    starts_ms = job.predicted_start_ms
    return (
        job.job_id,
        job.state.value,
        job.priority.value,
        job.model_id,
        number(job.queue_position),
        "-" if starts_ms is None else seconds(starts_ms),
        job.pool_id or "-",
        number(job.usage.tokens_out),
        "-" if age_ms is None else seconds(max(0.0, age_ms)),
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
    if explanation.waiting_for:
        _exclusions("waits because", explanation.waiting_for, len(explanation.waiting_for), out)
    elif not explanation.decisions:
        out.result("no placement was decided")
    out.result(f"trace: {explanation.trace_id or '-'}")


def _from_catalog(added: FromCatalog) -> str:
    asked = f"asked for as {added.alias}, " if added.alias else ""
    filled = ", ".join(f"{name} {value}" for name, value in sorted(added.filled.items()))
    return f"catalog: {asked}revision {added.revision}, adds {filled or 'nothing'}"


def _decision(decision: Decision, out: Output) -> None:
    out.result("")
    declined = f" and letting {decision.declined_offers} slots pass"
    out.result(
        f"attempt {decision.attempt}: {decision.pool_id} after waiting "
        f"{seconds(decision.waited_ms)}{declined if decision.declined_offers else ''}, decided by "
        f"{decision.decided_by} (rules version {decision.rules_version})"
    )
    rows = [
        (
            ("* " if item.pool_id == decision.pool_id else "  ") + item.pool_id,
            f"{item.predicted_end_ms} ms",
            f"{item.first_token_ms} ms",
            "-" if item.prompt_ms is None else f"{item.prompt_ms} ms",
            f"{item.decode_ms} ms",
            "warm" if item.kv_warm else "cold",
            number(item.slots_free),
            gib(item.vram_headroom_bytes),
            f"{item.snapshot_age_ms} ms",
            number(item.snapshot_version),
            f"{item.perf_scale:.0%}",
            *_facts(item.snapshot),
        )
        for item in decision.candidates
    ]
    title = f"candidates ({len(rows)} of {decision.candidates_total})"
    columns = (
        "  POOL",
        "SCORE",
        "FIRST TOKEN",
        "OF IT PROMPT",
        "DECODE",
        "KV",
        "SLOTS",
        "HEADROOM",
        "AGE",
        "VERSION",
        "CLOCKS",
    )
    out.table(title, (*columns, *FACT_COLUMNS), rows)
    if decision.exclusions:
        _exclusions("excluded", decision.exclusions, decision.exclusions_total, out)
    if not decision.complete:
        out.result("the recording no longer holds this decision; only the best of it was kept")


def _facts(snapshot: SnapshotFacts | None) -> Sequence[str]:
    """What the pool had reported, in the order of `FACT_COLUMNS`."""
    if snapshot is None:
        return ("-",) * len(FACT_COLUMNS)
    return (
        f"{snapshot.slots_free}/{snapshot.slots_total}",
        gib(snapshot.vram_free_bytes),
        number(snapshot.perf_tokens_per_s),
        number(snapshot.prefill_tokens_per_s),
    )


def _exclusions(title: str, exclusions: Sequence[Exclusion], total: int, out: Output) -> None:
    rows = [
        (
            item.pool_id if index == 0 else "",
            shortfall.reason.value,
            shortfall.required or "-",
            shortfall.offered or "-",
        )
        for item in exclusions
        for index, shortfall in enumerate(item.shortfalls)
    ]
    out.table(f"{title} ({len(exclusions)} of {total})", ("POOL", "LACKS", "NEEDS", "HAS"), rows)
