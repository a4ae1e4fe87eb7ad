"""What hosts and the journal tell about a campaign after it: their part of the history."""

import datetime as dt
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults import history
from faults.chaos.fleet import FREE_SLOTS, MOCK_SLOTS, host_of_pool

# The journal's times are those of decisions, a little before the records were durable, on a clock
# that may be a little off. Moved back, they can only hide a defect, never invent one.
JOURNAL_EARLIER_MS = 1_000


def host_events(log: Path) -> Iterator[history.AnyEvent]:
    """Attempts as a pool manager's log lines tell of them, over all of its lives."""
    if not log.exists():
        return
    busy: dict[str, set[str]] = {}
    for line in log.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        at_ms = int(wall_ms(entry.get("timestamp")))
        if entry.get("event") == "listening":
            # A new life: nothing of the one before runs any more.
            yield from _gone(busy, at_ms)
        elif entry.get("event") in ("attempt_started", "attempt_ended"):
            busy.setdefault(entry["pool_id"], set()).add(entry["replica_id"])
            yield _attempt(entry, at_ms)


def _gone(busy: dict[str, set[str]], at_ms: int) -> Iterator[history.AnyEvent]:
    for pool_id, replicas in busy.items():
        for replica in sorted(replicas):
            host = host_of_pool(pool_id)
            yield history.ReplicaGone(at_ms=at_ms, host=host, pool=pool_id, replica=replica)
    busy.clear()


def _attempt(entry: dict[str, str], at_ms: int) -> history.AnyEvent:
    pool_id = entry["pool_id"]
    slots = {"mock": MOCK_SLOTS, "free": FREE_SLOTS}.get(pool_id.rpartition(":")[2], 1)
    if entry["event"] == "attempt_ended":
        return history.AttemptEnded(
            at_ms=at_ms,
            host=host_of_pool(pool_id),
            pool=pool_id,
            replica=entry["replica_id"],
            job_id=entry["job_id"],
            attempt=int(entry["attempt"]),
        )
    return history.AttemptBegan(
        at_ms=at_ms,
        host=host_of_pool(pool_id),
        pool=pool_id,
        replica=entry["replica_id"],
        job_id=entry["job_id"],
        attempt=int(entry["attempt"]),
        slots_total=slots,
    )


def journal_events(path: Path, offset_ms: int = JOURNAL_EARLIER_MS) -> list[history.AnyEvent]:
    """The records of a journal whose orchestrator has stopped."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        events = [
            *_accepts(connection, offset_ms),
            *_dispatches(connection, offset_ms),
            *_terminals(connection, offset_ms),
        ]
    finally:
        connection.close()
    return sorted(events, key=lambda event: event.at_ms)


def _accepts(connection: sqlite3.Connection, offset_ms: int) -> Iterator[history.AnyEvent]:
    for seq, at_ms, text in connection.execute(
        "SELECT seq, accepted_ms, record FROM accept ORDER BY seq"
    ):
        spec = _record(text)["spec"]
        yield history.JournalAccepted(
            at_ms=at_ms - offset_ms,
            job_id=spec["job_id"],
            request_id=spec["request_id"],
            seq=seq,
            priority="INTERACTIVE",
            lane=str(spec["needs"]),
        )


def _dispatches(connection: sqlite3.Connection, offset_ms: int) -> Iterator[history.AnyEvent]:
    for job_id, attempt, at_ms, text in connection.execute(
        "SELECT job_id, attempt, sent_ms, record FROM dispatch ORDER BY written"
    ):
        record = _record(text)
        yield history.JournalDispatched(
            at_ms=at_ms - offset_ms,
            job_id=job_id,
            attempt=attempt,
            pool=record["pool_id"],
            replica=record["replica_id"],
        )


def _terminals(connection: sqlite3.Connection, offset_ms: int) -> Iterator[history.AnyEvent]:
    for job_id, at_ms, text in connection.execute(
        "SELECT job_id, ended_ms, record FROM terminal ORDER BY written"
    ):
        state = str(_record(text)["state"]).upper()
        yield history.JournalEnded(at_ms=at_ms - offset_ms, job_id=job_id, state=state)


def _record(text: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(text[text.index("{") :])
    return record


def wall_ms(timestamp: object) -> float:
    """The instant of a log line, in milliseconds of wall time."""
    return dt.datetime.fromisoformat(str(timestamp)).timestamp() * 1000
