# SPDX-License-Identifier: Apache-2.0
"""run, stream, cancel."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from llamaorch_client.aio import AsyncClient
from llamaorch_client.artifact import ArtifactAbout, ArtifactKind
from llamaorch_client.cli import job_ids
from llamaorch_client.cli.clock import server_now
from llamaorch_client.cli.failure import ExitCode, UsageError, as_record, sentences, span_text
from llamaorch_client.cli.output import Output, OutputError, plain
from llamaorch_client.cli.progress import Progress
from llamaorch_client.cli.waiting import Waiting
from llamaorch_client.errors import (
    ErrorDetail,
    JobFailedError,
    LlamaOrchError,
    NotFoundError,
    UnavailableError,
)
from llamaorch_client.events import End, Event, Failed, Resumed, TokenLogprob, Tokens
from llamaorch_client.model import JobState, Receipt
from llamaorch_client.options import Timing
from llamaorch_client.request import (
    Budgets,
    ChatMessage,
    JobRequest,
    KvHint,
    Priority,
    Sampling,
)
from llamaorch_client.stream import JobStream

# How long the end by a signal waits for the server: to learn whether a job was accepted, and to
# cancel it.
INTERRUPT_TIMEOUT_S = 5.0
# A longer prompt goes to the server as an artifact: its messages, and requests, have bounds.
INLINE_BYTES_MAX = 2 * 1024 * 1024
UTF8_BYTES_MAX = 4
MODELS_NAMED = 8
NO_POOL = ErrorDetail("no pool is registered", "POOL_UNAVAILABLE", "UNAVAILABLE")
LOGPROB_COLUMNS = ("TOKEN", "LOGPROB", "LIKELIEST")


async def run(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Gives a job and prints its output; Ctrl-C or SIGTERM cancels the job."""
    model_id = await _model(arguments, client)
    request = _request(arguments, model_id, await _deadline(arguments, client))
    request = await _stored(request, client)
    giving = asyncio.create_task(client.enqueue(request, correlation_id=arguments.correlation_id))
    try:
        receipt = await asyncio.shield(giving)
        if arguments.detach:
            _tell_detached(receipt, out)
            return ExitCode.FINISHED
        followed = client.stream(receipt.job_id, failures_as_events=True)
        waiting = Waiting(client, request.model_id, out)
        return await _follow(followed, out, receipt, waiting)
    except asyncio.CancelledError:
        # This is how Ctrl-C arrives, and SIGTERM. It is answered here, so it is not raised again.
        await _interrupted(giving, out, client)
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, OutputError):
        # Nobody gets the output any more, as after Ctrl-C.
        await _interrupted(giving, out, client)
        raise


async def stream(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Prints a job's output from its beginning; Ctrl-C leaves it running."""
    # Asked first because a stream waits long for a server that is away; this call does not.
    correlation_id = arguments.correlation_id
    call = partial(client.get_job, correlation_id=correlation_id)
    job = await job_ids.by_id(call, arguments.job_id, client, correlation_id)
    followed = client.stream(job.job_id, failures_as_events=True, correlation_id=correlation_id)
    try:
        return await _follow(followed, out, None, Waiting(client, job.model_id, out))
    except asyncio.CancelledError:
        out.say(
            f"left job {job.job_id} running; `llorch stream {job.job_id}` follows it again, "
            f"`llorch cancel {job.job_id}` stops it"
        )
        return ExitCode.INTERRUPTED


async def cancel(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Cancels a job and tells its true state (ORCH-3026)."""
    call = partial(client.cancel, correlation_id=arguments.correlation_id)
    job = await job_ids.by_id(call, arguments.job_id, client, arguments.correlation_id)
    if out.as_json:
        out.record({"job": job})
    elif job.state is JobState.CANCELLED:
        out.result(f"job {job.job_id} is cancelled")
    else:
        out.result(f"job {job.job_id} had already ended: {job.state.value.lower()}")
    return ExitCode.FINISHED


def read_prompt(arguments: argparse.Namespace) -> None:
    """Completes the prompt from stdin, before the event loop starts.

    Raises:
        UsageError: there is no prompt, or it is not UTF-8.
    """
    if arguments.input_artifact:
        if arguments.prompt or arguments.prompt_file or arguments.chat or arguments.system:
            raise UsageError("with --input-artifact the prompt is what is stored: give no other")
        arguments.prompt = ""
        return
    if arguments.prompt_file is not None:
        arguments.prompt = _read_file(arguments)
        return
    if arguments.prompt and arguments.prompt != ["-"]:
        arguments.prompt = " ".join(arguments.prompt)
        return
    if not arguments.prompt and sys.stdin.isatty():
        raise UsageError("give a prompt: llorch run 'Say hello', or pipe one in")
    try:
        arguments.prompt = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise UsageError("the prompt on stdin is not UTF-8 text") from None
    if not arguments.prompt:
        raise UsageError("the prompt on stdin is empty")


def _read_file(arguments: argparse.Namespace) -> str:
    if arguments.prompt:
        raise UsageError("give a prompt or --prompt-file, not both")
    try:
        prompt = Path(arguments.prompt_file).read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{arguments.prompt_file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{arguments.prompt_file} is not UTF-8 text") from None
    if not prompt:
        raise UsageError(f"{arguments.prompt_file} is empty")
    return prompt


async def _stored(request: JobRequest, client: AsyncClient) -> JobRequest:
    """The request; an input that is too long for a message is stored first."""
    texts = [message.content for message in request.messages] or [request.prompt or ""]
    if sum(map(len, texts)) * UTF8_BYTES_MAX <= INLINE_BYTES_MAX:
        return request
    media_type, content = "text/plain", texts[0].encode()
    if request.messages:
        media_type = "application/json"
        content = json.dumps({"messages": plain(request.messages)}).encode()
    about = ArtifactAbout(kind=ArtifactKind.INPUT, media_type=media_type)
    stored, _ = await client.artifacts.put(content, about)
    return replace(request, prompt=None, messages=(), artifact_id=stored.artifact_id)


async def _model(arguments: argparse.Namespace, client: AsyncClient) -> str:
    if arguments.model:
        return str(arguments.model)
    found = await client.capabilities(correlation_id=arguments.correlation_id)
    return only_model(found.models_ready, found.model_ids)


def only_model(ready: Sequence[str], known: Sequence[str]) -> str:
    """The model that is meant where none is named: the one that is served.

    While none is, the one that may be soon: its job waits, and is told why.

    Raises:
        UsageError: there are several.
        UnavailableError: there is no pool.
    """
    match ready or known:
        case (only,):
            return only
        case ():
            raise UnavailableError(NO_POOL)
        case _ if ready:
            raise UsageError(f"choose a model with --model: {_listed(ready)}")
        case _:
            wait = "name the one to wait for with --model"
            raise UsageError(f"no model is served now; {wait}: {_listed(known)}")


def _listed(models: Sequence[str]) -> str:
    more = f" and {len(models) - MODELS_NAMED} more" if len(models) > MODELS_NAMED else ""
    return f"{', '.join(models[:MODELS_NAMED])}{more}"


def _session_budgets(arguments: argparse.Namespace) -> Budgets | None:
    given = Budgets(
        tokens=arguments.session_tokens,
        time_ms=arguments.session_time_ms,
        cost_micros=arguments.session_cost_micros,
    )
    if given == Budgets():
        return None
    if not arguments.session:
        raise UsageError("the budgets of a session need one: name it by --session")
    return given


async def _deadline(arguments: argparse.Namespace, client: AsyncClient) -> datetime | None:
    if arguments.deadline_s is None:
        return None
    now = await server_now(client, arguments.correlation_id)
    return now + timedelta(seconds=arguments.deadline_s)


def _request(arguments: argparse.Namespace, model_id: str, deadline: datetime | None) -> JobRequest:
    system = [ChatMessage("system", arguments.system)] if arguments.system is not None else []
    chat = arguments.chat or bool(system)
    queue_timeout_s = arguments.queue_timeout_s
    return JobRequest(
        model_id=model_id,
        prompt=None if chat or arguments.input_artifact else arguments.prompt,
        artifact_id=arguments.input_artifact,
        messages=(*system, ChatMessage("user", arguments.prompt)) if chat else (),
        job_id=arguments.job_id,
        session_id=arguments.session,
        session_budgets=_session_budgets(arguments),
        kv_hint=KvHint.REUSE if arguments.reuse_kv else KvHint.NONE,
        priority=Priority(arguments.priority.upper()),
        engine=arguments.engine,
        sampling=Sampling(
            seed=arguments.seed,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            max_tokens=arguments.max_tokens,
            stop=tuple(arguments.stop),
            logprobs=arguments.logprobs,
        ),
        expected_tokens=arguments.expected_tokens,
        deadline=deadline,
        queue_timeout_ms=None if queue_timeout_s is None else ceil(queue_timeout_s * 1000),
        labels=dict(arguments.label),
    )


def _tell_detached(receipt: Receipt, out: Output) -> None:
    if out.as_json:
        out.record({"event": "accepted", **plain(receipt)})
        return
    out.result(receipt.job_id)
    out.say(f"accepted at position {receipt.queue_position}; `llorch stream` follows it")


async def _follow(
    followed: JobStream, out: Output, receipt: Receipt | None, waiting: Waiting
) -> ExitCode:
    progress = Progress(receipt.job_id if receipt is not None else "")
    now_ms = Timing().now_ms
    if receipt is not None:
        progress.accepted(receipt)
        if out.as_json:
            out.record({"event": "accepted", **plain(receipt)})
    outcome: End | Failed | None = None
    rows: list[tuple[str, str, str]] = []
    out.progress(progress.line())
    try:
        async with followed, waiting.watching():
            async for event in followed:
                waiting.update(event)
                _show(event, out)
                progress.update(event, now_ms())
                if isinstance(event, Tokens) and not out.as_json:
                    rows.extend(_logprob_rows(event))
                if isinstance(event, End | Failed):
                    outcome = event
                elif not out.as_json:
                    out.progress(progress.line())
    finally:
        out.end_progress()
    out.about(LOGPROB_COLUMNS, rows)
    return _tell_outcome(outcome, followed, out)


def _logprob_rows(tokens: Tokens) -> list[tuple[str, str, str]]:
    return [
        (repr(token.token), f"{token.logprob:.3f}", ", ".join(map(_likely, token.top)))
        for piece in tokens.logprobs
        for token in piece
    ]


def _likely(token: TokenLogprob) -> str:
    return f"{token.token!r} {token.logprob:.3f}"


def _show(event: Event, out: Output) -> None:
    if out.as_json:
        out.record(_event_record(event))
    elif isinstance(event, Tokens):
        out.token_text(event.text)
    elif isinstance(event, Resumed):
        out.say(f"attempt {event.attempt} goes on at {event.pool_id} ({event.mode.value})")


def _event_record(event: Event) -> dict[str, Any]:
    record = {"event": event.name, **plain(event)}
    if isinstance(event, Tokens):
        record["text"] = event.text
    if isinstance(event, Failed):
        record["error"] = as_record(JobFailedError(event.error))
    return record


def _tell_outcome(outcome: End | Failed | None, followed: JobStream, out: Output) -> ExitCode:
    assert outcome is not None, "a stream ends with an outcome or an exception"
    if isinstance(outcome, Failed):
        if not out.as_json:
            failure = JobFailedError(outcome.error, followed.job_id)
            out.say(sentences(failure, "")[0], "red")
        return ExitCode.JOB_FAILED
    finished = outcome.state is JobState.FINISHED
    if not out.as_json:
        out.say(_summary(outcome, followed), "green" if finished else "yellow")
    return ExitCode.FINISHED if finished else ExitCode.JOB_FAILED


def _summary(end: End, followed: JobStream) -> str:
    usage = end.usage
    parts = [f"{end.state.value.lower()} ({end.finish_reason.value.lower()})"]
    if usage.tokens_out is not None:
        parts.append(f"{usage.tokens_out} tokens")
    if usage.tokens_per_s is not None:
        parts.append(f"{usage.tokens_per_s:.1f} tok/s")
    if usage.queue_time_ms is not None:
        parts.append(f"queued {span_text(usage.queue_time_ms)}")
    if usage.first_token_ms is not None:
        parts.append(f"first token after {span_text(usage.first_token_ms)}")
    if followed.resumes:
        parts.append(f"resumed {followed.resumes}x")
    return f"job {followed.job_id} {', '.join(parts)}"


async def _interrupted(giving: "asyncio.Task[Receipt]", out: Output, client: AsyncClient) -> None:
    out.end_progress()
    job_id = ""
    try:
        # The server may be accepting the job at this moment.
        async with asyncio.timeout(INTERRUPT_TIMEOUT_S):
            job_id = (await giving).job_id
            job = await client.cancel(job_id)
    except NotFoundError:
        out.say(f"job {job_id} is not known to the server any more")
    except LlamaOrchError as error:
        out.say(sentences(error, client.target)[0] if job_id else "no job was accepted")
    except TimeoutError:
        told = f"job {job_id} may still run" if job_id else "the job may have been accepted"
        out.say(f"{told}: the server did not answer; `llorch jobs` shows it")
    else:
        state = job.state.value.lower()
        done = "cancelled" if job.state is JobState.CANCELLED else f"had already ended: {state}"
        if out.as_json:
            out.record({"event": "interrupted", "job": job})
        out.say(f"job {job_id} {done}")
