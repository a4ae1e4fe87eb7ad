"""Runs attempts on engines and keeps their output. ORCH-3026, LO-204, LO-304, LO-305.

A slot belongs to its attempt until the engine no longer works on it. Whatever ends an attempt,
exactly one terminal record is written to its log; who is connected at that time does not matter.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from opentelemetry.trace import SpanKind

from pool_managerd import failpoints
from pool_managerd.attempts import admitting, told
from pool_managerd.attempts.command import (
    OUTCOME_OF_STOP,
    AttemptCommand,
    InputError,
    Prompt,
    Refusal,
    Stop,
)
from pool_managerd.attempts.run import Run, usage_of
from pool_managerd.core.attempts import (
    AttemptFailure,
    AttemptKey,
    AttemptLog,
    EndReason,
    ErrorKind,
    Prefix,
    Terminal,
)
from pool_managerd.core.outbox import RefusalReason
from pool_managerd.core.replica import Reason
from pool_managerd.core.store import AppendOutcome, AttemptStore
from pool_managerd.engines import port
from pool_managerd.pools.incarnation import PoolDeps
from pool_managerd.pools.pool import Pool
from pool_managerd.telemetry import SPAN_ATTEMPT, SPAN_CANCEL, SPAN_GENERATE, Telemetry, log


async def _no_inputs(_: AttemptKey) -> Prompt:
    raise InputError("this host fetches no inputs", lasting=True)


class Executor:
    """All attempts of a host. `on_output` is told of every log that started, grew or ended.

    `fetch_input` gets the prompt of an attempt that came without one; it raises `InputError`.
    """

    def __init__(self, store: AttemptStore, deps: PoolDeps) -> None:
        self.store = store
        self.on_output: Callable[[AttemptLog], None] = lambda _log: None
        self.fetch_input: Callable[[AttemptKey], Awaitable[Prompt]] = _no_inputs
        self._deps = deps
        self._telemetry: Telemetry = deps.telemetry
        self._pools: dict[str, Pool] = {}
        self._runs: dict[AttemptKey, Run] = {}

    def attach(self, pool: Pool) -> None:
        """Lets `pool` take attempts."""
        self._pools[pool.pool_id] = pool

    @property
    def idle(self) -> bool:
        """True when no attempt holds a slot."""
        return not self._runs

    def running(self, replica_id: str) -> list[AttemptLog]:
        """Logs of the attempts that hold a slot of `replica_id`."""
        return [run.log for run in self._runs.values() if run.log.replica_id == replica_id]

    def all_running(self) -> list[AttemptLog]:
        """Logs of all attempts that hold a slot."""
        return [run.log for run in self._runs.values()]

    def start(self, command: AttemptCommand) -> AttemptLog | Refusal:
        """Starts an attempt, or returns the log of one that is known already.

        Nothing starts twice.
        """
        known = self.store.get(command.key)
        if known is not None:
            return known
        pool = self._pools.get(command.pool_id)
        if pool is None:
            return admitting.unknown_replica(command)
        refusal = admitting.refusal(command, pool, self.store)
        if refusal is not None:
            return refusal
        prefix = admitting.prefix(command, self.store)
        if isinstance(prefix, Refusal):
            return prefix
        incarnation = pool.incarnation
        if incarnation.slots is None or not incarnation.slots.acquire(command.key):
            return Refusal(RefusalReason.NO_SLOT, f"all slots of {pool.pool_id} are taken")
        if prefix is not None:
            command = admitting.following(command, prefix)
        return self._begin(command, pool, prefix)

    def cancel(self, key: AttemptKey, *, job_cancelled: bool = False) -> None:
        """Stops an attempt; without effect when it is over or not known.

        Its end says whether its job was cancelled.
        """
        run = self._runs.get(key)
        if run is not None:
            run.request_stop(Stop.JOB_CANCELLED if job_cancelled else Stop.CANCEL)

    def forget(self, key: AttemptKey) -> None:
        """Forgets an attempt and its output; one that still runs is stopped first."""
        run = self._runs.get(key)
        if run is None:
            self.store.release(key)
            return
        run.discard = True
        run.request_stop(Stop.CANCEL)

    def replica_gone(self, replica_id: str, sentence: str) -> None:
        """Ends the attempts of an engine that is over with ENGINE_DIED."""
        for run in tuple(self._runs.values()):
            if run.incarnation.replica_id == replica_id:
                run.request_stop(Stop.REPLICA_GONE, sentence)

    def drain_expired(self, pool_id: str) -> None:
        """Stops the attempts of a pool whose drain has lasted long enough."""
        for run in tuple(self._runs.values()):
            if run.pool.pool_id == pool_id:
                run.request_stop(Stop.DRAINED)

    def _begin(self, command: AttemptCommand, pool: Pool, prefix: Prefix | None) -> AttemptLog:
        incarnation = pool.incarnation
        assert incarnation.engine is not None, "a pool that accepts work has an engine"
        replica = (pool.pool_id, incarnation.replica_id)
        entry = AttemptLog(command.key, replica, command.verify_until, prefix)
        entry.kv_warmth = command.session_id in incarnation.warm
        self.store.add(entry)
        now_ms = self._deps.clock.now_ms()
        run = Run(
            command,
            entry,
            pool,
            incarnation,
            incarnation.engine,
            told.attempt_facts(command, pool.info),
            now_ms,
        )
        self._runs[command.key] = run
        self._telemetry.metrics.attempt_started(pool.pool_id)
        self._deps.spawn(self._run(run))
        self._deps.feed.publish(pool.pool_id)
        log.info(
            "attempt_started",
            **run.facts,
            trace_id=told.trace_id(command.traceparent),
            kv_warmth=entry.kv_warmth,
            replay=command.verify_until is not None,
            continuation=command.continue_from is not None,
            human=f"Job {command.key.job_id} starts on pool {pool.pool_id}.",
        )
        return entry

    async def _run(self, run: Run) -> None:
        with self._telemetry.span(SPAN_ATTEMPT, run.facts, run.command.traceparent) as span:
            try:
                terminal = await self._generate(run)
                await self._settle(run, terminal)
            finally:
                # Also when the service is stopped hard: the slot and the log stay consistent.
                self._finish(run, Terminal(OUTCOME_OF_STOP[Stop.REPLICA_GONE]))
            ended = run.log.terminal
            assert ended is not None, "a finished attempt has a terminal record"
            how = told.ended(ended, run.log.tokens_out, kv_warmth=run.log.kv_warmth)
            self._telemetry.annotate(span, how, told.failure_of(ended))
        log.info(
            "attempt_ended",
            **run.facts,
            **how,
            trace_id=told.trace_id(run.command.traceparent),
            duration_ms=self._deps.clock.now_ms() - run.started_ms,
            human=told.sentence(run.facts, how),
        )

    async def _generate(self, run: Run) -> Terminal:
        run.log.started = True
        self.on_output(run.log)
        asked = {**run.facts, **told.asked(run.command.request, run.facts)}
        with self._telemetry.span(SPAN_GENERATE, asked, kind=SpanKind.CLIENT) as span:
            request = replace(
                run.command.request,
                traceparent=self._telemetry.traceparent(),
                keep=functools.partial(self._keep, run),
            )
            generator = self._events(run, request)
            try:
                terminal = await self._consume(run, generator)
            except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
                log.error(
                    "engine_adapter_failed",
                    **run.facts,
                    error=type(error).__name__,
                    human="A bug in the engine's adapter: report it.",
                )
                run.request_stop(Stop.BROKEN)
                terminal = None
            finally:
                await self._close(run, generator)
            if terminal is None or run.stop is not None:
                terminal = run.stopped()
            answered = told.answered(terminal, run.first_ms)
            self._telemetry.annotate(span, answered, told.failure_of(terminal))
        return terminal

    def _events(
        self, run: Run, request: port.GenerationRequest
    ) -> AsyncGenerator[port.GenerationEvent, None]:
        if run.command.fetch_input:
            return self._fetched(run, request)
        return run.engine.generate(request)

    async def _fetched(
        self, run: Run, request: port.GenerationRequest
    ) -> AsyncGenerator[port.GenerationEvent, None]:
        """Fetches the prompt, then generates: both can be stopped, and count against deadlines."""
        try:
            prompt = await self.fetch_input(run.command.key)
        except InputError as error:
            lasting = error.lasting
            failure = port.Failure.INVALID_REQUEST if lasting else port.Failure.ENGINE_ERROR
            yield port.Failed(failure, f"its input could not be fetched: {error}")
            return
        generator = run.engine.generate(replace(request, prompt=prompt))
        async with contextlib.aclosing(generator):
            async for event in generator:
                yield event

    async def _consume(
        self, run: Run, generator: AsyncGenerator[port.GenerationEvent, None]
    ) -> Terminal | None:
        remaining_ms = run.command.remaining_ms
        scope = asyncio.timeout(None if remaining_ms is None else remaining_ms / 1000)
        try:
            async with scope:
                run.scope = scope
                if run.stop is not None:
                    return None
                async for event in generator:
                    if run.stop is not None:
                        return None
                    terminal = self._apply(run, event)
                    if terminal is not None or run.stop is not None:
                        return terminal
        except TimeoutError:
            if not scope.expired():
                raise
            run.request_stop(Stop.DEADLINE)
            return None
        finally:
            run.scope = None
        return Terminal(AttemptFailure(ErrorKind.ENGINE_DIED, "the stream ended without an end"))

    def _apply(self, run: Run, event: port.GenerationEvent) -> Terminal | None:
        match event:
            case port.Piece():
                self._keep(run, event)
                return None
            case port.Finished(finish=finish, usage=usage):
                if not run.log.visible:
                    run.request_stop(Stop.MISMATCH)
                    return None
                return Terminal(EndReason[finish.name], usage_of(usage))
            case port.Failed(failure=failure, message=message, usage=usage):
                kind = ErrorKind[failure.name]
                return Terminal(AttemptFailure(kind, message), usage_of(usage))

    def _keep(self, run: Run, piece: port.Piece) -> None:
        if run.stop is not None:
            return
        # A continuation's log begins with what was delivered before, so its length says nothing.
        first = run.first_ms is None
        if first:
            failpoints.reach("output.first.before")
        outcome = self.store.append(run.log, piece.text, piece.token_ids, piece.logprobs)
        if outcome is AppendOutcome.KEPT:
            if first:
                run.first_ms = self._deps.clock.now_ms() - run.started_ms
                self._telemetry.metrics.first_output(run.pool.pool_id, run.first_ms)
                failpoints.reach("output.first.after")
            self.on_output(run.log)
        else:
            too_large = outcome is AppendOutcome.TOO_LARGE
            run.request_stop(Stop.TOO_LARGE if too_large else Stop.MISMATCH)

    async def _close(self, run: Run, generator: AsyncGenerator[port.GenerationEvent, None]) -> None:
        limit_ms = self._deps.supervision.cancel_confirm_ms
        try:
            async with asyncio.timeout(limit_ms / 1000):
                await generator.aclose()
        except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
            log.error(
                "engine_close_failed",
                **run.facts,
                error=type(error).__name__,
                human="The engine did not let go of a stopped generation in time.",
            )

    async def _settle(self, run: Run, terminal: Terminal) -> None:
        """Waits until the slot is idle, then ends the log; a dead engine's end is told at once."""
        terminal = admitting.with_continued(terminal, run.command.continue_tokens)
        outcome = terminal.outcome
        died = isinstance(outcome, AttemptFailure) and outcome.kind is ErrorKind.ENGINE_DIED
        if died:
            self._end(run, terminal)
        if run.stop is not None or died:
            await self._confirm_idle(run)
        self._end(run, terminal)

    def _end(self, run: Run, terminal: Terminal) -> None:
        if run.log.terminal is None:
            failpoints.reach("end.before")
            run.log.end(terminal)
            self.store.note_ended(run.log.key)
            failpoints.reach("end.after")
            self.on_output(run.log)

    async def _confirm_idle(self, run: Run) -> None:
        limit_ms = self._deps.supervision.cancel_confirm_ms
        request_id = run.command.request.request_id
        gone = asyncio.create_task(run.incarnation.gone.wait())
        confirm = asyncio.create_task(run.engine.confirm_idle(request_id, limit_ms))
        try:
            await asyncio.wait(
                (gone, confirm), timeout=limit_ms / 1000, return_when=asyncio.FIRST_COMPLETED
            )
            confirmed = gone.done() or (confirm.done() and confirm.exception() is None)
        finally:
            for task in (gone, confirm):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        self._telemetry.event(SPAN_CANCEL, {**run.facts, "confirmed": confirmed})
        if confirmed:
            failpoints.reach("idle.confirmed")
            return
        detail = f"a stopped generation still held its slot after {limit_ms} ms"
        run.pool.fail(run.incarnation.replica_id, Reason.CANCEL_UNCONFIRMED, detail)
        # The pool's own stop is bounded, so this wait is too.
        await run.incarnation.gone.wait()

    def _finish(self, run: Run, fallback: Terminal) -> None:
        key = run.command.key
        self._end(run, fallback)
        if run.incarnation.slots is not None:
            run.incarnation.slots.release(key)
        run.incarnation.note_session(run.command.session_id, run.pool.info)
        if run.stop in (None, Stop.BROKEN) and run.log.terminal is not None:
            run.pool.attempt_ended(run.incarnation.replica_id, run.log.terminal.outcome)
        del self._runs[key]
        self._count_end(run)
        if run.discard:
            self.store.release(key)
        self._deps.feed.publish(run.pool.pool_id)

    def _count_end(self, run: Run) -> None:
        ended = run.log.terminal
        assert ended is not None, "a finished attempt has a terminal record"
        took_ms = self._deps.clock.now_ms() - run.started_ms
        tokens = (ended.usage.tokens_in, run.log.tokens_out)
        self._telemetry.metrics.attempt_ended(
            run.pool.pool_id, told.outcome_text(ended), took_ms, tokens
        )
