"""What an Exchange stream knows of a job that it follows; when a waiting one's place is told."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.core.job import Job
from orchestrator_core.core.states import JobState
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.servicers.follow import QUEUED_EVERY_S
from orchestrator_core.wire.exchange import encode_handle

if TYPE_CHECKING:
    from orchestrator_core.servicers.exchange_session import ExchangeSession
    from orchestrator_core.servicers.late import LateRead

# Telling a waiting job's place costs a forecast, so this many are made at a time; with more jobs
# waiting than that allows, each is told less often.
PLACES_AT_ONCE = 64
PLACES_EVERY_S = 0.1
UNLIMITED: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is followed. `credit_bytes` None is without limit."""

    resume: events_pb2.ResumePoint | None = None
    credit_bytes: int | None = None
    observer: bool = False


class Subscription:
    """One job on the stream. `limit` is the byte of output up to which there is credit.

    `place` is what was told last about the queue, `place_due` says that it is to be told again,
    `patience` runs while the outcome is known but not the text before it. `late` brings text that
    was evicted here.
    """

    __slots__ = (
        "closed",
        "handle",
        "job",
        "key",
        "late",
        "limit",
        "log",
        "observer",
        "patience",
        "place",
        "place_due",
        "place_planned",
        "reader",
        "ready",
        "session",
    )

    def __init__(
        self, session: "ExchangeSession", handle: int, job: Job, log: OutputLog, terms: Terms
    ) -> None:
        self.session = session
        self.handle = handle
        self.key = encode_handle(handle)
        self.job = job
        self.log = log
        self.observer = terms.observer
        self.ready = self.closed = self.place_due = self.place_planned = False
        self.place = b""
        self.patience: asyncio.TimerHandle | None = None
        self.late: LateRead | None = None
        self.reader = log.open(terms.resume, self.wake, late=True)
        self.reader.acked = self.reader.offset
        credit = terms.credit_bytes
        self.limit = UNLIMITED if credit is None else self.reader.offset + credit

    def wake(self) -> None:
        """Something may be there to send."""
        if not self.ready:
            self.ready = True
            self.session.make_ready(self)


class Places:
    """Waiting jobs whose place is to be told again in a second or a little later.

    Those that are not followed any more are dropped as soon as they are due: a client that follows
    and leaves jobs faster than places are told does not make them pile up.
    """

    def __init__(self) -> None:
        self._planned: deque[tuple[float, Subscription]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def plan(self, subscription: Subscription) -> None:
        """Looks at a job's place later, unless that is planned already."""
        if subscription.place_planned:
            return
        subscription.place_planned = True
        loop = asyncio.get_running_loop()
        self._planned.append((loop.time() + QUEUED_EVERY_S, subscription))
        if self._timer is None:
            self._timer = loop.call_later(QUEUED_EVERY_S, self._look)

    def close(self) -> None:
        """Tells nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        told = 0
        while told < PLACES_AT_ONCE and self._planned and self._planned[0][0] <= now_s:
            subscription = self._planned.popleft()[1]
            subscription.place_planned = False
            if not subscription.closed and subscription.job.state is JobState.QUEUED:
                told += 1
                subscription.place_due = True
                subscription.wake()
        self._timer = None
        if self._planned:
            wait_s = max(PLACES_EVERY_S, self._planned[0][0] - now_s)
            self._timer = loop.call_later(wait_s, self._look)
