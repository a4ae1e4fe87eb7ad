# SPDX-License-Identifier: Apache-2.0
"""Errors as people read them: one sentence with what to change, and the exit code."""

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import grpc

from llamaorch_client.address import DEFAULT_PORT
from llamaorch_client.cli.cells import gib, named
from llamaorch_client.cli.output import plain
from llamaorch_client.cli.wording import Wording
from llamaorch_client.errors import (
    AccessError,
    CatalogError,
    DataLossError,
    DuplicateError,
    ErrorDetail,
    IncompatibleError,
    InUseError,
    InvalidParamsError,
    JobFailedError,
    LlamaOrchError,
    NotFoundError,
    PoolShortfall,
    RejectedError,
    ServerError,
    UnavailableError,
)
from llamaorch_client.troubles import SILENCES, WORDS, Trouble, words

# Of a unit so many are told in the next.
LARGE = 100
SECOND_MS = 1000
# Of what pools lack for a job that none can serve.
LACKS_SHOWN = 12
# How the server begins where it has nothing to tell but what each pool lacks.
_EACH = "none of the "
_OF_MEMORY = frozenset({"VRAM_TOTAL", "KV_TOTAL", "KV_ROOM", "DEVICE_SHARE"})
_BYTES = re.compile(r"\b\d{8,}\b")
AS_SENT = Wording()
TOKEN_VARIABLE = "LLORCH_TOKEN"  # noqa: S105 - the name of the variable

# Where the command's options are to be changed, and not those of the library.
_BY_OPTION = {
    Trouble.CERTIFICATE_OF_NOBODY: "its certificate is not from an authority that is trusted here; "
    "name the authority's file by --ca-file",
    Trouble.CERTIFICATE_UNREADABLE: "one of the files of --ca-file, --client-cert and --client-key "
    "holds no certificate, or no key, in PEM form",
    Trouble.NOT_TLS: "it does not speak TLS; leave --tls and --ca-file out, or set tls.certificate "
    "there",
    Trouble.NOT_GRPC: f"{WORDS[Trouble.NOT_GRPC]}, {DEFAULT_PORT} unless it is set",
    Trouble.CLOSED_AT_ONCE: "it closed the connection at once; it may ask for TLS (--tls or "
    "--ca-file) or for a certificate of yours (--client-cert)",
}


class ExitCode(IntEnum):
    """What the command's exit status means."""

    FINISHED = 0
    JOB_FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    REJECTED = 4
    DENIED = 5
    INTERRUPTED = 130


class UsageError(Exception):
    """The command line cannot be carried out; the message says what to change."""


def exit_code(error: LlamaOrchError) -> ExitCode:
    """Returns the exit code of an error."""
    match error:
        case RejectedError():
            return ExitCode.REJECTED
        case UnavailableError():
            return ExitCode.UNAVAILABLE
        case (
            InvalidParamsError()
            | IncompatibleError()
            | NotFoundError()
            | DuplicateError()
            | AccessError()
            | CatalogError()
            | InUseError()
        ):
            return ExitCode.USAGE
        case _:
            return ExitCode.JOB_FAILED


def sentences(
    error: LlamaOrchError, server: str, words: Wording = AS_SENT, token: str | None = None
) -> Sequence[str]:
    """Returns what to tell: the sentence first, then one line per bad field or shortfall.

    Fields are told in `words`. `token` is where the token came from, empty where there is none,
    None where that is not known.
    """
    if isinstance(error, AccessError):
        return [_access_refused(error, token)]
    message, fields = _fields(error, words)
    told = isinstance(error, IncompatibleError) and _told_below(error)
    shortfalls = error.shortfalls if isinstance(error, IncompatibleError) and told else ()
    return [_sentence(error, words.sentence(message), server), *fields, *_lacks(shortfalls)]


def _told_below(error: IncompatibleError) -> bool:
    return any(item.kind != "MODEL" for item in error.shortfalls)


def _lacks(shortfalls: Sequence[PoolShortfall]) -> list[str]:
    """What pools lack, a line for all that lack the same; the most first."""
    groups: dict[str, list[str]] = {}
    for item in shortfalls:
        told = item.description
        if item.kind in _OF_MEMORY:
            told = _BYTES.sub(lambda match: gib(int(match[0])), told)
        groups.setdefault(f"{item.kind}: {told}", []).append(item.pool_id)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    lines = [f"  {named(pool_ids)}: {lack}" for lack, pool_ids in ordered[:LACKS_SHOWN]]
    hidden = len(ordered) - LACKS_SHOWN
    return [*lines, f"  and {hidden} more (--json has them)"] if hidden > 0 else lines


def _fields(error: LlamaOrchError, words: Wording) -> tuple[str, list[str]]:
    """The message, and a line for each bad field that it does not tell."""
    found = error.violations
    lines = [f"  {words.field(bad.field)}: {words.sentence(bad.description)}" for bad in found]
    if not found or not error.message.startswith(f"{found[0].field} {found[0].description}"):
        return error.message, lines
    told = error.metadata.get("violations_total", "")
    total = int(told) if told.isdecimal() else len(found)
    if total == 1:
        # What follows in the message says what to do about it.
        return words.field(found[0].field) + error.message.removeprefix(found[0].field), []
    omitted = [f"  and {total - len(found)} more"] if total > len(found) else []
    return f"{total} things are wrong", lines + omitted


def _access_refused(error: AccessError, token: str | None) -> str:
    """What to do about the token; the server speaks of the metadata in which it travels."""
    denied = error.reason == "PERMISSION_DENIED"
    if token == "" and not denied:
        return (
            "access refused: this server asks for a token: set LLORCH_TOKEN to yours, or name the "
            "file that holds it by --token-file or LLORCH_TOKEN_FILE"
        )
    which = "a token with that role" if denied else "a token of this server"
    hint = f"set LLORCH_TOKEN to {which}, or name its file by --token-file"
    if token and token != TOKEN_VARIABLE:
        hint = f"yours is in {token}: name the file of {which} by --token-file"
    return f"access refused: {error.message}; {hint}"


def _sentence(error: LlamaOrchError, message: str, server: str) -> str:
    match error:
        case RejectedError():
            label = f" by policy {error.policy_label}" if error.policy_label else ""
            text = f"rejected{label}: {message}; {_when(error)}"
        case JobFailedError():
            text = _job_failed(error)
        case UnavailableError():
            text = _unavailable(error, server)
        case InvalidParamsError():
            text = f"the request was refused: {message}"
        case IncompatibleError():
            # Lines below it tell what each pool lacks; what to change instead stands here.
            told = "" if _told_below(error) and message.startswith(_EACH) else f" {message}"
            text = f"no pool can ever serve the job:{told}"
        case CatalogError() | DuplicateError() | InUseError() | DataLossError():
            text = message
        case NotFoundError(reason="MODEL_UNKNOWN"):
            text = f"{message}; `llorch models` lists those that are"
        case NotFoundError():
            text = f"not found: {message}; {_where_to_look(error)}"
        case ServerError(code="UNIMPLEMENTED"):
            text = (
                f"{server} speaks gRPC but does not know this command ({error.message}); it may be "
                "a pool-managerd, or an older orchestratord"
            )
        case _:
            text = f"{error.reason}: {error.message} (correlation id {error.correlation_id or '-'})"
    return text


def as_record(error: LlamaOrchError) -> dict[str, Any]:
    """Returns an error for --json."""
    detail = plain(error.detail)
    return {
        "kind": type(error).__name__.removesuffix("Error"),
        **detail,
        "retriable": error.retriable,
        "exit_code": int(exit_code(error)),
    }


def own_record(kind: str, text: str, code: ExitCode) -> dict[str, Any]:
    """Returns an error that the command itself found, for --json, with the keys of all errors."""
    detail = plain(ErrorDetail(text, kind.upper(), "FAILED_PRECONDITION"))
    return {"kind": kind, **detail, "retriable": False, "exit_code": int(code)}


def span_text(span_ms: float) -> str:
    """Returns a span for people, of at most 8 characters below ten years.

    As in 250 ms, 1.5 s, 12m 05s, 8h 25m, 3d 4h.
    """
    if span_ms < SECOND_MS:
        return f"{span_ms:.0f} ms"
    whole_s = round(span_ms / SECOND_MS)
    minutes, hours, days = (whole_s // unit_s for unit_s in (60, 3_600, 86_400))
    if whole_s < LARGE:
        return f"{span_ms / SECOND_MS:.1f} s"
    if minutes < LARGE:
        return f"{minutes}m {whole_s % 60:02}s"
    return f"{hours}h {minutes % 60:02}m" if hours < LARGE else f"{days}d {hours % 24}h"


def _when(error: LlamaOrchError) -> str:
    if error.retry_after_ms is None:
        return "trying again will not help before something changes"
    return f"try again in {span_text(error.retry_after_ms)}, or let llorch do so with --wait-s 60"


def _where_to_look(error: NotFoundError) -> str:
    kind = error.metadata.get("resource_type", "").rpartition(".")[2]
    commands = {"Artifact": "artifacts list", "Pool": "pools", "Session": "sessions"}
    command = commands.get(kind, "jobs")
    return f"`llorch {command}` lists what the server knows"


def _job_failed(error: JobFailedError) -> str:
    job = f"job {error.job_id} " if error.job_id else "the job "
    again = error.retry_after_ms
    hint = f"; try again in {span_text(again)}" if again is not None else ""
    return f"{job}failed: {error.reason}: {error.message}{hint}"


def _unavailable(error: UnavailableError, server: str) -> str:
    if error.reason in ("POOL_UNAVAILABLE", "POOL_UNREADY"):
        # What the server itself advises after it is said here in the words of this command.
        why = error.message.partition("; start a pool-managerd")[0]
        none = why.startswith("no pool is registered")
        start = "start pool-managerd on a GPU host and point it at this server, or " if none else ""
        return f"{server} has no pool ready: {why}; {start}see `llorch pools`"
    if error.reason != error.code:
        return f"{server} cannot work now: {error.reason}: {error.message}"
    trouble = error.detail.connection
    cause = error.__cause__
    text = cause.details() if isinstance(cause, grpc.aio.AioRpcError) else error.message
    told = _BY_OPTION.get(trouble) or words(trouble, text or "")
    if trouble and trouble not in SILENCES:
        return f"{server}: {told}"
    return (
        f"{server} does not answer: {told}; start orchestratord (`make up`), or name another "
        "server with --server HOST:PORT or LLORCH_SERVER"
    )
