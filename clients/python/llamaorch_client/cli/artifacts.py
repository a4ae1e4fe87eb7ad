# SPDX-License-Identifier: Apache-2.0
"""artifacts: put, get, list, show, delete."""

import argparse
import mimetypes
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from llamaorch_client.aio import AsyncClient
from llamaorch_client.artifact import (
    Artifact,
    ArtifactAbout,
    ArtifactFilter,
    ArtifactKind,
    Source,
)
from llamaorch_client.cli.failure import ExitCode, UsageError
from llamaorch_client.cli.output import Output
from llamaorch_client.cli.stdin import stdin_to_the_end

COLUMNS = ("ARTIFACT", "KIND", "BYTES", "TAGS", "JOB", "SESSION", "PUT", "EXPIRES")
ANCESTORS_SHOWN = 50
STDIO = "-"


async def artifacts(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Carries out one action (ORCH-3097, ORCH-3098)."""
    if (arguments.action == "list") == bool(arguments.what):
        raise UsageError("write llorch artifacts list, or put FILE, or get|show|delete ID")
    try:
        await ACTIONS[arguments.action](arguments, out, client)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"{error.filename or arguments.what}: {error.strerror}") from error
    return ExitCode.FINISHED


def input_type(name: str) -> str:
    """Media type of a file that is an input of jobs."""
    return "application/json" if name.endswith(".json") else "text/plain"


async def _put(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> None:
    kind = ArtifactKind(arguments.kind.upper() or "OTHER")
    guessed = mimetypes.guess_type(arguments.what)[0] or ""
    if kind is ArtifactKind.INPUT:
        guessed = input_type(arguments.what)
    about = ArtifactAbout(
        kind=kind,
        media_type=arguments.media_type or guessed,
        tags=arguments.tag,
        parent_ids=arguments.parent,
        labels=dict(arguments.label),
        job_id=arguments.job,
        session_id=arguments.session,
    )
    with _source(arguments.what) as source:
        stored, existed = await client.artifacts.put(
            source,
            about,
            progress=lambda done, total: out.progress(_progress("sent", done, total)),
            correlation_id=arguments.correlation_id,
        )
    out.end_progress()
    if out.as_json:
        out.record({"artifact": stored, "existed": existed})
        return
    out.result(stored.artifact_id)
    out.say(f"{stored.size_bytes} bytes, {'there before' if existed else 'stored'}")


def _source(what: str) -> AbstractContextManager[Source]:
    return stdin_to_the_end() if what == STDIO else nullcontext(Path(what))


async def _get(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> None:
    if not arguments.output:
        raise UsageError("say where to: -o FILE, or -o - for stdout")
    if arguments.output == STDIO:
        if out.as_json:
            raise UsageError("--json and -o - both want stdout: name a file")
        _, content = await client.artifacts.read(
            arguments.what, correlation_id=arguments.correlation_id
        )
        out.content(content)
        return
    target = Path(arguments.output)
    found = await client.artifacts.get(
        arguments.what,
        target,
        progress=lambda done, total: out.progress(_progress("received", done, total)),
        correlation_id=arguments.correlation_id,
    )
    out.end_progress()
    if out.as_json:
        out.record({"artifact": found, "file": str(target)})
    else:
        out.say(f"{target}: {found.size_bytes} bytes, SHA-256 is right")


async def _list(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> None:
    where = ArtifactFilter(
        kind=ArtifactKind(arguments.kind.upper() or "UNSPECIFIED"),
        tags=arguments.tag,
        parent_id=arguments.parent[0] if arguments.parent else "",
        job_id=arguments.job,
        session_id=arguments.session,
    )
    # One beyond the limit tells that there are more.
    listed = client.artifacts.list(
        where, limit=arguments.limit + 1, correlation_id=arguments.correlation_id
    )
    read = [each async for each in listed]
    found = read[: arguments.limit]
    if out.as_json:
        out.record({"artifacts": found})
    elif not found:
        out.say("no artifacts")
    else:
        out.table("", COLUMNS, [_row(each) for each in found])
    if len(read) > len(found):
        out.say(f"the newest {len(found)}; --limit N shows more")


async def _show(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> None:
    lineage = await client.artifacts.info(
        arguments.what, ancestors=ANCESTORS_SHOWN, correlation_id=arguments.correlation_id
    )
    if out.as_json:
        out.record({"lineage": lineage})
        return
    found = lineage.artifact
    out.result(f"artifact {found.artifact_id}: {found.kind.value.lower()}, {found.media_type}")
    out.result(f"{found.size_bytes} bytes, sha256 {found.sha256}, put by {found.owner}")
    labels = ", ".join(f"{key}={value}" for key, value in sorted(found.labels.items()))
    out.result(f"labels: {labels or '-'}")
    out.result(f"made from: {', '.join(found.parent_ids) or '-'}")
    more = " and more" if lineage.omitted else ""
    ancestors = [_row(each) for each in lineage.ancestors]
    out.table("", COLUMNS, [_row(found)])
    if ancestors:
        out.table(f"ancestors{more}, nearest first", COLUMNS, ancestors)


async def _delete(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> None:
    await client.artifacts.delete(arguments.what, correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record({"deleted": arguments.what})
    else:
        out.result(f"artifact {arguments.what} is deleted")


ACTIONS = {"put": _put, "get": _get, "list": _list, "show": _show, "delete": _delete}


def _row(found: Artifact) -> Sequence[str]:
    put, expires = (
        "-" if at is None else at.isoformat(" ", "seconds").removesuffix("+00:00")
        for at in (found.created_at, found.expires_at)
    )
    return (
        found.artifact_id,
        found.kind.value.lower(),
        str(found.size_bytes),
        " ".join(found.tags) or "-",
        found.job_id or "-",
        found.session_id or "-",
        put,
        expires,
    )


def _progress(what: str, done: int, total: int | None) -> str:
    return f"{what} {done}{f' of {total}' if total is not None else ''} bytes"
