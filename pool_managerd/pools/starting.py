"""Starts one engine: its model, its memory, the engine itself, a test. ORCH-3001."""

import asyncio
from dataclasses import dataclass

from pool_managerd import failpoints
from pool_managerd.config.schema import PoolTable
from pool_managerd.core.replica import Reason
from pool_managerd.core.slots import Slots
from pool_managerd.engines.port import EngineInfo, PreloadError, Writing
from pool_managerd.pools.incarnation import Incarnation, PoolDeps
from pool_managerd.pools.probing import Tester
from pool_managerd.pools.watching import reason_of
from pool_managerd.preflight.port import Prepared
from pool_managerd.telemetry import SPAN_START


@dataclass(frozen=True, slots=True)
class NotStarted:
    """Why no engine serves; `problem` is for people. `passing`: it may be gone by the next try."""

    reason: Reason
    problem: str
    passing: bool = False


async def started(
    table: PoolTable, model_ref: str, incarnation: Incarnation, deps: PoolDeps, tester: Tester
) -> EngineInfo | NotStarted:
    """Starts the engine of `incarnation`; it has slots once it serves.

    Ends within `supervision.preload_timeout_ms` of the model being found. Never raises, but is
    cancelled when the incarnation ends.
    """
    attributes = {"pool_id": table.pool_id, "replica_id": incarnation.replica_id}
    began_ms = deps.clock.now_ms()
    with deps.telemetry.span(SPAN_START, attributes) as span:
        came = await _started(table, model_ref, incarnation, deps, tester)
        error = came.reason.value if isinstance(came, NotStarted) else ""
        outcome = "failed" if error else "ready"
        deps.telemetry.annotate(span, {"outcome": outcome}, error)
        took_ms = deps.clock.now_ms() - began_ms
        deps.telemetry.metrics.engine_started(table.pool_id, outcome, took_ms)
    return came


async def missing(table: PoolTable, model_ref: str, deps: PoolDeps) -> str:
    """Why the model of a reload cannot be had; empty where it is here now, fetched if need be."""
    try:
        await deps.preflight.model(table, model_ref)
    except PreloadError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - the start meets it again, and tells of it
        return ""
    return ""


async def _started(
    table: PoolTable, model_ref: str, incarnation: Incarnation, deps: PoolDeps, tester: Tester
) -> EngineInfo | NotStarted:
    timeout_ms = deps.supervision.preload_timeout_ms
    try:
        # A model may have to be fetched first, which has a bound of its own.
        prepared = await deps.preflight.model(table, model_ref)
        async with asyncio.timeout(timeout_ms / 1000):
            info = await _start_engine(prepared, incarnation, deps, tester)
            incarnation.slots = Slots(info.slots_total)
            failpoints.reach("engine.ready")
    except PreloadError as error:
        reason = reason_of(error.failure, Reason.PRELOAD_FAILED)
        return NotStarted(reason, str(error), error.passing)
    except TimeoutError:
        problem = f"the engine was not ready after {timeout_ms} ms{_wrote(incarnation)}"
    except Exception as error:  # noqa: BLE001 - a broken adapter must not end the host
        problem = f"the engine could not be started: {type(error).__name__}: {error}"
    else:
        return info
    return NotStarted(Reason.PRELOAD_FAILED, problem)


def _wrote(incarnation: Incarnation) -> str:
    """What the engine wrote last, which may say what it was doing; empty where nothing is known."""
    engine = incarnation.engine
    words = engine.last_words() if isinstance(engine, Writing) else ""
    return f" (it wrote: {words})" if words else ""


async def _start_engine(
    prepared: Prepared, incarnation: Incarnation, deps: PoolDeps, tester: Tester
) -> EngineInfo:
    await deps.preflight.memory(prepared.table)
    engine = deps.make_engine(prepared.table, prepared.model_ref)
    incarnation.engine = engine
    info = await engine.start()
    await tester.accept(engine, info)
    await deps.preflight.loaded(prepared.table, info)
    return info
