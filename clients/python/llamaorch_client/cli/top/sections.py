# SPDX-License-Identifier: Apache-2.0
"""The tables of `llorch top`: pools, queue, running jobs, decisions, ends. Pure."""

from datetime import datetime

from rich.text import Text

from llamaorch_client.cli.cells import FREE_SLOTS, free_slots, gib, number
from llamaorch_client.cli.failure import span_text
from llamaorch_client.cli.top.grid import Bar, Cell, Column, Glyphs, Line, Section, clean
from llamaorch_client.cli.top.state import Screen, age_ms, in_order, progress
from llamaorch_client.model import Decision, Job, JobState, QueueView
from llamaorch_client.model_fleet import Pool

GIB = 2**30
# There are some, which belong to others.
UNSEEN = "none that may be seen here"
_STATE_STYLES = {
    "READY": "green",
    "FINISHED": "green",
    "STARTING": "yellow",
    "DRAINING": "yellow",
    "CANCELLED": "yellow",
    "EXPIRED": "yellow",
    "DROPPED": "yellow",
}
_JOB = Column("JOB", 14, grow=True)
_MODEL = Column("MODEL", 10, drop=3, grow=True)

POOLS = (
    Column("POOL", 10, grow=True),
    Column("STATE", 12),
    Column(FREE_SLOTS, 11),
    Column("MEMORY GiB", 17, drop=2),
    Column("BUSY", 10, drop=1),
    Column("TEMP", 5, drop=1, right=True),
    Column("TOK/S", 6, drop=3, right=True),
    Column("MODEL", 14, drop=4, grow=True),
    Column("HOST", 10, drop=5, grow=True),
)
QUEUE = (
    _JOB,
    Column("CLASS", 11),
    Column("POS", 4, right=True),
    Column("STARTS IN", 9, right=True),
    Column("WAITED", 8, drop=1, right=True),
    _MODEL,
)
RUNNING = (
    _JOB,
    Column("POOL", 12),
    Column("PROGRESS", 22),
    Column("ENDS IN", 8, right=True),
    Column("FOR", 8, drop=1, right=True),
    _MODEL,
)
DECISIONS = (
    _JOB,
    Column("POOL", 14),
    Column("DECIDED BY", 14),
    Column("OF", 3, right=True),
    Column("WAITED", 8, drop=1, right=True),
    Column("AGO", 8, right=True),
)
ENDED = (
    _JOB,
    Column("OUTCOME", 28),
    Column("TOKENS", 6, right=True),
    Column("TOOK", 8, drop=1, right=True),
    Column("AGO", 8, right=True),
    Column("POOL", 12, drop=2),
)


def now_ms_of(screen: Screen) -> datetime | None:
    """The server's clock when the overview was made."""
    return screen.overview.observed_at if screen.overview is not None else None


def pools(screen: Screen) -> Section:
    """Pools with what their devices do, those in trouble first and below each of them why."""
    lines: list[Line] = []
    for pool in sorted(screen.pools, key=lambda pool: pool.state == "READY"):
        lines.append(Line(_pool(pool)))
        if pool.state_reason:
            lines.append(Line(sentence=f"  {pool.state_reason}", style="dim"))
    return Section(f"POOLS {len(screen.pools)}", POOLS, lines, "no pools")


def _pool(pool: Pool) -> tuple[Cell, ...]:
    used, total = _sum(pool, "memory_used_bytes"), _sum(pool, "memory_total_bytes")
    busy = [d.utilization_ratio for d in pool.devices if d.utilization_ratio is not None]
    warm = [d.temperature_celsius for d in pool.devices if d.temperature_celsius is not None]
    taken = pool.slots_total - pool.slots_free
    slots = Bar(
        _share(taken, pool.slots_total), free_slots(pool.slots_free, pool.slots_total), "cyan"
    )
    return (
        pool.pool_id,
        _state(pool.state),
        # What was free when a host was last heard of is free to nobody now.
        slots if pool.connected else "-",
        Bar(_share(used, total), f"{_gib(used)}/{_gib(total)}", "magenta"),
        Bar(max(busy, default=None), f"{max(busy):4.0%}" if busy else "-", "green"),
        f"{max(warm)} C" if warm else "-",
        number(pool.tokens_per_s),
        pool.model_id,
        pool.host_id,
    )


def queue(screen: Screen) -> Section:
    """Who waits, the next of each class first, and until when the last of a class waits."""
    overview = screen.overview
    if overview is None:
        return Section("QUEUE", QUEUE, (), "")
    lines: list[Line] = []
    for view in overview.queues:
        if view.waiting:
            lines.append(Line(sentence=_class(view), style="dim"))
        lines += [_waiting(job, overview.observed_at) for job in view.next]
    waiting = sum(view.waiting for view in overview.queues)
    return Section(f"QUEUE {waiting} of {overview.queue_capacity}", QUEUE, lines, "nobody waits")


def _class(view: QueueView) -> str:
    last = view.last_predicted_start_ms
    told = "not known: no pool for it takes work" if last is None else f"in {span_text(last)}"
    return f"{view.priority.value.lower()}: {view.waiting} waiting, the last starts {told}"


def _waiting(job: Job, now: datetime | None) -> Line:
    cells = (
        job.job_id,
        job.priority.value.lower(),
        number(job.queue_position),
        _span(job.predicted_start_ms),
        _span(age_ms(now, job.accepted_at)),
        job.model_id,
    )
    return Line(cells, ("queue", job.job_id))


def running(screen: Screen, now: datetime | None) -> Section:
    """What runs, and how far it is."""
    overview = screen.overview
    if overview is None:
        return Section("RUNNING", RUNNING, (), "")
    lines = [_running(job, now) for job in in_order(overview.running, screen.order)]
    title = f"RUNNING {overview.running_total} by {screen.order.value}"
    return Section(title, RUNNING, lines, UNSEEN if overview.running_total else "nothing runs")


def _running(job: Job, now: datetime | None) -> Line:
    pieces, expected = number(job.output_pieces), number(job.expected_tokens)
    bar = Bar(progress(job), f"{pieces}/{expected}", "green")
    cells = (
        job.job_id,
        job.pool_id,
        bar if job.state is JobState.RUNNING else Text("starting", "yellow"),
        "late" if job.predicted_end_ms == 0 else _span(job.predicted_end_ms),
        _span(age_ms(now, job.started_at)),
        job.model_id,
    )
    return Line(cells, ("running", job.job_id))


def decisions(screen: Screen, now: datetime | None, glyphs: Glyphs) -> Section:
    """Which pool each job was given to, and what decided it."""
    found = screen.overview.decisions if screen.overview is not None else ()
    lines = [_decision(decision, now, glyphs) for decision in found]
    return Section("DECISIONS", DECISIONS, lines, "none yet")


def _decision(decision: Decision, now: datetime | None, glyphs: Glyphs) -> Line:
    cells = (
        decision.job_id,
        f"{glyphs.arrow} {decision.pool_id}",
        decision.decided_by,
        number(decision.candidates_total),
        _span(decision.waited_ms),
        _span(age_ms(now, decision.decided_at)),
    )
    return Line(cells, ("decisions", decision.job_id))


def ended(screen: Screen, now: datetime | None) -> Section:
    """How the last jobs ended."""
    overview = screen.overview
    if overview is None:
        return Section("ENDED", ENDED, (), "")
    lines = [_ended(job, now) for job in overview.ended]
    empty = UNSEEN if overview.ended_total else "none yet"
    if overview.store_unavailable:
        empty = "not told while the journal does not answer"
    return Section(f"ENDED {overview.ended_total}", ENDED, lines, empty)


def _ended(job: Job, now: datetime | None) -> Line:
    why = job.error.reason if job.error is not None else job.finish_reason.value
    outcome = _state(job.state.value)
    if why not in (job.state.value, "UNSPECIFIED"):
        outcome.append(f" {why.lower() if job.error is None else clean(why)}")
    cells = (
        job.job_id,
        outcome,
        number(job.usage.tokens_out),
        _span(age_ms(job.ended_at, job.accepted_at)),
        _span(age_ms(now, job.ended_at)),
        job.pool_id or "-",
    )
    return Line(cells, ("ended", job.job_id))


def _state(word: str) -> Text:
    return Text(clean(word), _STATE_STYLES.get(word, "red"))


def _span(span_ms: int | None) -> str:
    return "-" if span_ms is None else span_text(span_ms)


def _sum(pool: Pool, name: str) -> int | None:
    known = [value for d in pool.devices if (value := getattr(d, name)) is not None]
    return sum(known) if known else None


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _gib(value_bytes: int | None) -> str:
    return gib(value_bytes).removesuffix(" GiB")
