"""What one Exchange stream follows: handles, credit, acknowledgements, and what is sent next.

Nothing here waits. A job's log calls `Subscription.wake`, which makes the subscription ready; the
stream's one writer takes messages out with `next_message`. So a wake-up costs what is ready, never
what is followed, and a subscription costs no task and no buffer: what was not sent yet stays in the
relay's log. LO-302, LO-306.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as pb
from orchestrator_core.core.events import OutputAcknowledged
from orchestrator_core.core.outcome import FieldViolation, Reason, Refusal
from orchestrator_core.core.states import JobState
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.reader import MESSAGE_BYTES
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.follow import Audience, text_lost
from orchestrator_core.servicers.late import LateReads, must_wait
from orchestrator_core.servicers.ownership import check_own
from orchestrator_core.servicers.subscription import UNLIMITED, Places, Subscription, Terms
from orchestrator_core.wire.errors import to_status
from orchestrator_core.wire.exchange import ResponseBuilder

if TYPE_CHECKING:
    from orchestrator_core.relay.log import OutputLog

# A job with much to send leaves room for others in each message.
SHARE_BYTES: Final = MESSAGE_BYTES // 4
HANDLE_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Bounds of one stream.

    `handles_max` bounds the jobs followed at a time, and also the ended ones whose final
    acknowledgement may still come; `requests_max` those under way, and the results not sent yet.
    """

    handles_max: int = 8_192
    requests_max: int = 1_024


class Wake(Protocol):
    """Called when something to send comes up; `urgent` for what a caller waits for."""

    def __call__(self, *, urgent: bool) -> None:
        """Must return at once."""
        ...


class ExchangeSession:
    """Everything that one stream follows. `wake` is called when something to send comes up."""

    def __init__(
        self,
        runtime: Runtime,
        audience: Audience,
        wake: Wake,
        limits: ExchangeLimits | None = None,
    ) -> None:
        self._runtime = runtime
        self._audience = audience
        self._wake = wake
        self.limits = limits or ExchangeLimits()
        self._subscriptions: dict[int, Subscription] = {}
        self._ended: dict[int, tuple[str, OutputLog | None]] = {}
        self._ready: list[Subscription] = []
        self._results: deque[pb.ExchangeResult] = deque()
        self._broken: deque[pb.ExchangeBroken] = deque()
        self._places = Places()
        self._next_handle = 1
        self._unlimited = False
        self.late = LateReads(runtime)

    # --- what the client asks for

    @property
    def following(self) -> int:
        """Jobs that are followed."""
        return len(self._subscriptions)

    @property
    def unsent(self) -> int:
        """Results that were not sent yet."""
        return len(self._results)

    @property
    def has_more(self) -> bool:
        """True when `next_message` has something to look at."""
        return bool(self._ready or self._results or self._broken)

    def subscribe(self, job_id: str, terms: Terms, *, place_told: bool = False) -> int:
        """Follows a job from here on; returns its handle. What the job told must be durable.

        With `place_told` the client knows already where in the queue the job is.

        Raises:
            RefusalError: NOT_FOUND, or RESUME_WINDOW as `OutputLog.open`.
        """
        check_own(self._runtime, job_id)
        job = self._runtime.job(job_id)
        log = self._runtime.relay.log(job_id)
        handle = self._new_handle()
        subscription = Subscription(self, handle, job, log, terms)
        if self._unlimited:
            subscription.limit = UNLIMITED
        self._subscriptions[handle] = subscription
        self._audience.count(job_id, 0 if terms.observer else 1)
        subscription.place_due = not place_told
        subscription.wake()
        return handle

    def break_off(self, refusal: Refusal) -> int:
        """A handle whose following ends before it began, with the reason."""
        handle = self._new_handle()
        self._tell_broken(handle, refusal)
        return handle

    def unsubscribe(self, handle: int) -> str:
        """Ends the following of a job; returns its id. Nothing is sent of it any more.

        Raises:
            RefusalError: INVALID_PARAMS for a handle that is not followed.
        """
        subscription = self._subscriptions.get(handle)
        if subscription is not None:
            self._close(subscription)
            return subscription.job.job_id
        if handle in self._ended:
            return self._ended[handle][0]
        raise invalid("unsubscribe.handle", f"{handle} is not a handle that is followed here")

    def acknowledge(self, ack: pb.ExchangeAck) -> int:
        """Takes acknowledgements and credit; returns for how many handles. All or nothing.

        Raises:
            RefusalError: INVALID_PARAMS.
        """
        count = len(ack.handles)
        offsets = ack.text_offsets or [0] * count
        credits_bytes = ack.credit_bytes or [0] * count
        self._check_ack(ack.handles, offsets, credits_bytes)
        self._check_final(ack.final_handles)
        taken = 0
        for handle, offset, credit in zip(ack.handles, offsets, credits_bytes, strict=True):
            subscription = self._subscriptions.get(handle)
            if subscription is None:
                continue
            taken += 1
            self._acknowledge(subscription, offset)
            if credit:
                subscription.limit = min(subscription.limit + credit, UNLIMITED)
                subscription.wake()
        return taken + sum(self._final(handle) for handle in ack.final_handles)

    def answer(self, result: pb.ExchangeResult) -> None:
        """Queues a result."""
        self._results.append(result)
        self._wake(urgent=True)

    def lift_credit(self) -> None:
        """The client can give no more: no subscription waits for credit from now on."""
        self._unlimited = True
        for subscription in self._subscriptions.values():
            subscription.limit = UNLIMITED
            subscription.wake()

    def close(self) -> None:
        """The stream is over: every subscription counts as left. Idempotent."""
        for subscription in list(self._subscriptions.values()):
            self._close(subscription)
        self._places.close()

    # --- what is sent

    def make_ready(self, subscription: Subscription) -> None:
        """Puts a subscription among those to look at; it must not be there."""
        if not self._ready:
            self._wake(urgent=False)
        self._ready.append(subscription)

    def next_message(self) -> bytes:
        """The next ExchangeResponse, encoded; empty when there is nothing to send.

        At most about `MESSAGE_BYTES`. O(ready subscriptions + bytes).
        """
        message = ResponseBuilder()
        while self._results and message.size < MESSAGE_BYTES:
            message.result(self._results.popleft())
        ready, self._ready = self._ready, []
        looked = 0
        for subscription in ready:
            # Nothing of a handle may overtake the result that names it.
            if message.size >= MESSAGE_BYTES:
                break
            looked += 1
            subscription.ready = False
            if subscription.closed:
                continue
            try:
                if subscription.reader.lacks:
                    self._bring_back(subscription, message)
                else:
                    self._send(subscription, message)
            except Exception as error:  # noqa: BLE001 - a bug met by one job ends it, not the stream
                self._break(subscription, rpc.refusal_of(error))
        self._ready[:0] = ready[looked:]
        while self._broken and message.size < MESSAGE_BYTES:
            message.broken(self._broken.popleft())
        return message.encode()

    def _send(self, subscription: Subscription, message: ResponseBuilder) -> None:
        """Adds what a subscription has to send, in the job's order. Raises as `Reader.take`."""
        reader, key = subscription.reader, subscription.key
        items = reader.take_items(SHARE_BYTES, subscription.limit)
        last = reader.take_last() if reader.caught_up else b""
        if subscription.late is not None:
            self._let_next(subscription)
        for item in items:
            if item.text_bytes:
                message.text(key, item.first_index, item.entry)
            else:
                message.begun(key, item.entry)
        if last:
            message.event(key, last)
        if reader.done:
            self._outcome_sent(subscription)
        elif not reader.caught_up:
            if items:
                subscription.wake()
        elif subscription.job.state is JobState.QUEUED or subscription.log.final is not None:
            self._idle(subscription, message, sent=bool(items or last))

    def _bring_back(self, subscription: Subscription, message: ResponseBuilder) -> None:
        """Lets what a subscription lacks come from its host, as far as there is credit for it."""
        reader, job, log = subscription.reader, subscription.job, subscription.log
        credit_bytes = subscription.limit - reader.offset
        if must_wait(job, log):
            self._idle(subscription, message, sent=False)
        elif subscription.late is None and credit_bytes > 0:
            told = partial(self._brought, subscription)
            subscription.late = self.late.begin(job, log, reader, credit_bytes, told)

    def _let_next(self, subscription: Subscription) -> None:
        """Makes room for the next subscription that lacks text, once nothing is left of this."""
        if subscription.late is not None and not subscription.reader.side:
            subscription.late.sent.set()
            subscription.late = None

    def _brought(self, subscription: Subscription, refusal: Refusal | None) -> None:
        if refusal is None:
            self._let_next(subscription)
            subscription.wake()
        else:
            self._break(subscription, refusal)

    def _idle(self, subscription: Subscription, message: ResponseBuilder, *, sent: bool) -> None:
        """A job that waits is told its place; one whose text does not come is given up later."""
        if subscription.job.state is JobState.QUEUED:
            if sent:
                # A place that is told now would come before the output of this message.
                subscription.place, subscription.place_due = b"", True
                subscription.wake()
                return
            if subscription.place_due:
                subscription.place_due = False
                place = self._audience.queued(subscription.job)
                if place != subscription.place:
                    subscription.place = place
                    message.begun(subscription.key, place)
            self._places.plan(subscription)
        elif subscription.log.final is not None and subscription.patience is None:
            wait_s = self._runtime.core.config.reattach_grace_ms / 1000
            later = asyncio.get_running_loop().call_later
            subscription.patience = later(
                wait_s, self._lose_patience, subscription, subscription.reader.offset
            )

    def _lose_patience(self, subscription: Subscription, offset: int) -> None:
        """No host has brought the text of an ended job. With progress meanwhile it is waited on."""
        subscription.patience = None
        if subscription.closed:
            return
        if subscription.reader.offset != offset or not subscription.reader.caught_up:
            subscription.wake()
            return
        self._break(subscription, text_lost(subscription.job.job_id, subscription.log))

    def _break(self, subscription: Subscription, refusal: Refusal) -> None:
        self._close(subscription)
        self._tell_broken(subscription.handle, refusal)

    def _outcome_sent(self, subscription: Subscription) -> None:
        log = None if subscription.observer else subscription.log
        self._ended[subscription.handle] = subscription.job.job_id, log
        if len(self._ended) > self.limits.handles_max:
            del self._ended[next(iter(self._ended))]
        self._close(subscription)

    def _tell_broken(self, handle: int, refusal: Refusal) -> None:
        self._broken.append(pb.ExchangeBroken(handle=handle, error=to_status(refusal)))
        self._wake(urgent=True)

    def _close(self, subscription: Subscription) -> None:
        subscription.closed = True
        subscription.log.close(subscription.reader)
        if subscription.late is not None:
            subscription.late.cancel()
        if subscription.patience is not None:
            subscription.patience.cancel()
        del self._subscriptions[subscription.handle]
        self._audience.count(subscription.job.job_id, 0 if subscription.observer else -1)

    def _new_handle(self) -> int:
        if self._next_handle > HANDLE_MAX:
            text = f"the stream has used all {HANDLE_MAX} handles; open another"
            raise RefusalError(Refusal(Reason.ADMISSION_REJECT, text, None, "exchange-handles"))
        handle = self._next_handle
        self._next_handle += 1
        return handle

    # --- acknowledgements

    def _check_ack(
        self, handles: Sequence[int], offsets: Sequence[int], credits_bytes: Sequence[int]
    ) -> None:
        if len(offsets) != len(handles) or len(credits_bytes) != len(handles):
            text = "handles, text_offsets and credit_bytes must be equally long, or the last empty"
            raise invalid("ack", text)
        for handle, offset in zip(handles, offsets, strict=True):
            subscription = self._subscriptions.get(handle)
            if subscription is None and not 0 < handle < self._next_handle:
                raise invalid("ack.handles", f"{handle} was not assigned on this stream")
            if subscription is not None and offset > subscription.reader.offset:
                sent = subscription.reader.offset
                text = f"{offset} of handle {handle} lies beyond the {sent} bytes that were sent"
                raise invalid("ack.text_offsets", text)

    def _check_final(self, handles: Sequence[int]) -> None:
        for handle in handles:
            if handle in self._subscriptions or not 0 < handle < self._next_handle:
                text = f"{handle} is not a handle whose outcome was sent on this stream"
                raise invalid("ack.final_handles", text)

    def _acknowledge(self, subscription: Subscription, offset: int) -> None:
        if offset <= subscription.reader.acked:
            return
        subscription.reader.acked = offset
        if not subscription.observer:
            self._runtime.relay.acknowledged(subscription.job.job_id)

    def _final(self, handle: int) -> int:
        """The final acknowledgement: the output may go, unless somebody else still reads it."""
        job_id, log = self._ended.pop(handle, ("", None))
        # Once the job is forgotten, another may have its id.
        kept = log is not None and log.forgotten is None
        if kept and self._runtime.relay.release(job_id):
            self._runtime.submit(OutputAcknowledged(job_id))
        return 1 if job_id else 0


def invalid(field: str, description: str) -> RefusalError:
    """INVALID_PARAMS for one field of a request."""
    text = f"{field}: {description}"
    violation = FieldViolation(field, description)
    return RefusalError(Refusal(Reason.INVALID_PARAMS, text, violations=(violation,)))
