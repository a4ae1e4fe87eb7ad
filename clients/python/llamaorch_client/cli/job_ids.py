# SPDX-License-Identifier: Apache-2.0
"""Jobs by the beginning or the end of their ids, for people; programs give whole ids.

What is typed is a whole id first. Only where no job has it, it may be the beginning of one or its
end, and only of an id that the server made: those have one length, so none is part of another. They
begin with the time, so that for a minute all begin alike, and end at random. An id that a client
chose is a name: `job-1`, once forgotten, must never mean `job-10`, nor `JOB-1`.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from llamaorch_client.aio import AsyncClient, JobFilter
from llamaorch_client.cli.clock import server_now
from llamaorch_client.cli.failure import UsageError, span_text
from llamaorch_client.errors import NotFoundError
from llamaorch_client.model import Job

# A UUID, as servers make them. Source: RFC 9562, section 4.
_MADE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TYPED_CHARS_MIN = 4
_PART = re.compile(rf"[0-9a-f-]{{{TYPED_CHARS_MIN},35}}")
# Beyond so many jobs nobody can say here that only one begins so.
LOOKED_AT_MAX = 10_000
NAMES_LOOKED_AT_MAX = 500
PAGE_SIZE = 500
ID_CHARS_MAX = 128
SHOWN = 3

T = TypeVar("T")


async def by_id(
    call: Callable[[str], Awaitable[T]],
    typed: str,
    client: AsyncClient,
    correlation_id: str | None,
) -> T:
    """Makes a call about a job whose id was typed, whole, or its beginning or end.

    Raises:
        UsageError: several jobs have ids that begin or end so, or there are too many jobs to tell.
        NotFoundError: no job has the id, and none has one that begins or ends so.
    """
    try:
        return await call(typed)
    except NotFoundError as error:
        whole = await _whole(typed, error, client, correlation_id)
    return await call(whole)


@dataclass(slots=True)
class _Found:
    """Jobs whose ids begin or end so, newest first: ids that the server made, and others."""

    made: list[Job] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    complete: bool = True


async def _whole(
    typed: str, error: NotFoundError, client: AsyncClient, correlation_id: str | None
) -> str:
    # Source: RFC 9562, section 4: written in lower case, read in either.
    lowered = typed.lower()
    if _MADE.fullmatch(lowered):
        if lowered == typed:
            raise error
        return lowered
    if _PART.fullmatch(lowered) is None:
        found = await _look(typed, NAMES_LOOKED_AT_MAX, client, correlation_id)
        if found.made and len(typed) < TYPED_CHARS_MIN:
            raise UsageError(f"{typed} is too short: type {TYPED_CHARS_MIN} characters of an id")
        raise _not_found(error, found.names)
    found = await _look(typed, LOOKED_AT_MAX, client, correlation_id)
    if not found.made:
        raise _not_found(error, found.names)
    only = found.made[0]
    if len(found.made) == 1 and found.complete:
        return only.job_id
    now = await server_now(client, correlation_id)
    if len(found.made) > 1:
        raise UsageError(_several(typed, found.made, now))
    raise UsageError(
        f"more ids may begin or end with {typed}: there are over {LOOKED_AT_MAX} jobs, too many to "
        f"look at; if {_shown(only, now)} is meant, give its whole id"
    )


async def _look(
    typed: str, looked_at_max: int, client: AsyncClient, correlation_id: str | None
) -> _Found:
    """Looks at the newest jobs, until it has seen more than can be shown."""
    found, looked_at, lowered = _Found(), 0, typed.lower()
    # A server that does not pick them out lists all jobs.
    where = JobFilter(id_part=typed if len(typed) <= ID_CHARS_MAX else "")
    listed = client.list_jobs(
        where, limit=looked_at_max + 1, page_size=PAGE_SIZE, correlation_id=correlation_id
    )
    async for job in listed:
        looked_at += 1
        if looked_at > looked_at_max or len(found.made) > SHOWN:
            found.complete = False
            break
        if _MADE.fullmatch(job.job_id):
            if job.job_id.startswith(lowered) or job.job_id.endswith(lowered):
                found.made.append(job)
        elif job.job_id.startswith(typed):
            found.names.append(job.job_id)
    return found


def _several(typed: str, made: list[Job], now: datetime) -> str:
    found = ", ".join(_shown(job, now) for job in made[:SHOWN])
    more = " and more" if len(made) > SHOWN else ""
    several = f"the ids of several jobs begin or end with {typed}: {found}{more}"
    return f"{several}; type more of the one meant"


def _shown(job: Job, now: datetime) -> str:
    age_ms = 0.0
    if job.accepted_at is not None:
        age_ms = max(0.0, (now - job.accepted_at).total_seconds() * 1000)
    return f"{job.job_id} ({job.state.value.lower()}, given {span_text(age_ms)} ago)"


def _not_found(error: NotFoundError, near: list[str]) -> NotFoundError:
    if not near:
        return error
    more = " and more" if len(near) > SHOWN else ""
    told = f"; these begin so, and are to be given whole: {', '.join(near[:SHOWN])}{more}"
    return NotFoundError(replace(error.detail, message=error.message + told))
