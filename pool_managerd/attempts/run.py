"""One attempt that holds a slot: what it works with, what stops it, and what it then ends with."""

import asyncio
from dataclasses import dataclass, replace

from pool_managerd.attempts.command import OUTCOME_OF_STOP, AttemptCommand, Stop
from pool_managerd.attempts.told import Facts
from pool_managerd.core.attempts import AttemptFailure, AttemptLog, Terminal, Usage
from pool_managerd.core.tellable import count_or_none, time_ms_or_none
from pool_managerd.engines import port
from pool_managerd.pools.incarnation import Incarnation
from pool_managerd.pools.pool import Pool


@dataclass(slots=True, eq=False)
class Run:
    """Written by the executor alone. `scope` is there while the engine generates."""

    command: AttemptCommand
    log: AttemptLog
    pool: Pool
    incarnation: Incarnation
    engine: port.Engine
    facts: Facts
    started_ms: int
    first_ms: int | None = None
    stop: Stop | None = None
    stop_detail: str = ""
    scope: asyncio.Timeout | None = None
    discard: bool = False

    def request_stop(self, stop: Stop, detail: str = "") -> None:
        """Ends the generation at its next await; the first reason stands."""
        if self.stop is not None:
            return
        self.stop, self.stop_detail = stop, detail
        if self.scope is not None and not self.scope.expired():
            self.scope.reschedule(asyncio.get_running_loop().time())

    def stopped(self) -> Terminal:
        """How an attempt ends that was stopped."""
        assert self.stop is not None, "a generation ends with an event or because it is stopped"
        outcome = OUTCOME_OF_STOP[self.stop]
        if isinstance(outcome, AttemptFailure) and self.stop_detail:
            outcome = replace(outcome, message=self.stop_detail)
        tokens_out = self.log.tokens_out if self.log.tokens_counted else None
        return Terminal(outcome, Usage(tokens_out=tokens_out), self.stop is Stop.JOB_CANCELLED)


def usage_of(usage: port.Usage) -> Usage:
    """What an engine counted, as it is kept."""
    return Usage(
        tokens_in=count_or_none(usage.tokens_in),
        tokens_cached=count_or_none(usage.tokens_cached),
        tokens_out=count_or_none(usage.tokens_out),
        prefill_time_ms=time_ms_or_none(usage.prefill_time_ms),
        decode_time_ms=time_ms_or_none(usage.decode_time_ms),
    )
