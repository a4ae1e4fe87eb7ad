# SPDX-License-Identifier: Apache-2.0
"""What `llorch` does: command line in, exit code out, errors as sentences."""

import argparse
import asyncio
import io
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli import (
    access,
    artifacts,
    capabilities,
    config,
    devices,
    draining,
    fleet,
    inspecting,
    models,
    policy,
    running,
    sessions,
    wording,
)
from llamaorch_client.cli.arguments import parse
from llamaorch_client.cli.failure import (
    ExitCode,
    UsageError,
    as_record,
    exit_code,
    own_record,
    sentences,
)
from llamaorch_client.cli.output import Output, OutputError
from llamaorch_client.cli.termination import ENDED_BY_SIGNAL, heeded
from llamaorch_client.cli.top import command as top
from llamaorch_client.errors import LlamaOrchError
from llamaorch_client.options import ClientOptions, RetryOptions

Command = Callable[[argparse.Namespace, Output, AsyncClient], Awaitable[ExitCode]]

COMMANDS: dict[str, Command] = {
    "run": running.run,
    "stream": running.stream,
    "cancel": running.cancel,
    "jobs": inspecting.jobs,
    "explain": inspecting.explain,
    "sessions": sessions.sessions,
    "artifacts": artifacts.artifacts,
    "capabilities": capabilities.capabilities,
    "models": models.models,
    "policy": policy.policy,
    "config": config.config,
    "pools": fleet.pools,
    "drain": draining.drain,
    "undrain": draining.undrain,
    "reload": draining.reload,
    "devices": devices.devices,
    "status": fleet.status,
    "top": top.top,
}
STREAMING = frozenset({"run", "stream"})
# Around what is no text.
SHOWN_CHARS = 20


def main(argv: list[str] | None = None) -> int:
    """Carries out one command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character shows a question mark instead of a traceback.
            stream.reconfigure(errors="replace")
    arguments = parse(argv, os.environ)
    out = Output(arguments.json)
    try:
        return _carry_out(arguments, out)
    except KeyboardInterrupt:
        out.end_progress()
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader has left.
        return int(ExitCode.JOB_FAILED)
    except OutputError as error:
        out.say(f"llorch: {error}", "red")
        return int(ExitCode.JOB_FAILED)


def _carry_out(arguments: argparse.Namespace, out: Output) -> int:
    try:
        if arguments.plugin is not None:
            return _plugin(arguments)
        if arguments.command == "run":
            running.read_prompt(arguments)
        return asyncio.run(_with_client(arguments, out, _options(arguments)))
    except UsageError as error:
        return _misused(str(error), arguments, out)
    except ValueError as error:
        # The library names what its own callers set.
        text = _not_utf8(error) or wording.of(arguments).sentence(str(error))
        return _misused(text, arguments, out)
    except LlamaOrchError as error:
        first, *more = sentences(
            error, arguments.server, wording.of(arguments), access.token_source(arguments)
        )
        out.say(f"llorch: {first}", "red")
        for line in more:
            out.say(line)
        _record(as_record(error), arguments, out)
        return exit_code(error)


def _misused(text: str, arguments: argparse.Namespace, out: Output) -> int:
    out.say(f"llorch: {text}", "red")
    _record(own_record("Usage", text, ExitCode.USAGE), arguments, out)
    return int(ExitCode.USAGE)


def _record(error: dict[str, Any], arguments: argparse.Namespace, out: Output) -> None:
    if out.as_json:
        streaming = arguments.command in STREAMING
        out.record({"event": "error", "error": error} if streaming else {"error": error})


def _not_utf8(error: ValueError) -> str:
    """What to correct where a text that was typed cannot be sent; empty for other errors."""
    cause = error if isinstance(error, UnicodeEncodeError) else error.__cause__
    if not isinstance(cause, UnicodeEncodeError):
        return ""
    shown = cause.object[max(0, cause.start - SHOWN_CHARS) : cause.end + SHOWN_CHARS]
    return f"type it in UTF-8: {shown!a} is not"


def _plugin(arguments: argparse.Namespace) -> int:
    """Carries out a command of another package; it needs no server."""
    try:
        return int(arguments.plugin.run(arguments))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"{error.filename or arguments.command}: {error.strerror}") from error


async def _with_client(arguments: argparse.Namespace, out: Output, options: ClientOptions) -> int:
    code = int(ExitCode.INTERRUPTED)
    with heeded() as signals:
        try:
            async with AsyncClient(arguments.server, options=options) as client:
                code = int(await COMMANDS[arguments.command](arguments, out, client))
        except (asyncio.CancelledError, OSError, OutputError):
            # Ctrl-C comes so too, and is told by whoever runs this; a terminal that goes takes
            # nothing any more.
            if not signals:
                raise
    return ENDED_BY_SIGNAL + signals[0] if signals else code


def _options(arguments: argparse.Namespace) -> ClientOptions:
    # A person waits for the answer: give up soon, unless told to wait.
    retry = RetryOptions(attempts_max=3, time_max_ms=2_000, retry_rejected=False)
    if arguments.wait_s:
        retry = RetryOptions(attempts_max=1_000, time_max_ms=int(arguments.wait_s * 1000))
    return replace(access.options(arguments), retry=retry)
