"""Carries out what the core decided: writes it, sends it to hosts, answers who waits for it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

import structlog

from orchestrator_core.cancels import HeldCancels
from orchestrator_core.commit import CommitGate
from orchestrator_core.core.effects import (
    AttemptClosed,
    CancelUnconfirmed,
    ConfirmEnd,
    Effect,
    Gated,
    Immediate,
    JobEnded,
    JobForgotten,
    JobStarted,
    ModelClosed,
    ModelRefused,
    OfferDeclined,
    PoolVerified,
    ReplyAccepted,
    ReplyModel,
    ReplyPool,
    ReplyRefused,
    ReplySession,
    ReplyState,
    SendCancel,
    SendDrain,
    SendRelease,
    SendStart,
    SendVerdicts,
)
from orchestrator_core.core.events import (
    AcceptsFailed,
    AttemptEnded,
    AttemptRefused,
    EndConfirmed,
    Event,
    SubscribersChanged,
)
from orchestrator_core.core.job import Attempt
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Reason, Refusal
from orchestrator_core.core.records import (
    AcceptRecord,
    CatalogRecord,
    DispatchRecord,
    PoolDrainRecord,
    Record,
    SessionForgotten,
    SessionRecord,
    TerminalRecord,
)
from orchestrator_core.core.spec import StartMode
from orchestrator_core.followers import Followers
from orchestrator_core.hosts.bringing import Bringing
from orchestrator_core.hosts.continuing import attempt_lost, continuation, must_bring
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.relay import Relay
from orchestrator_core.replies import Replies
from orchestrator_core.store.port import Store, StoreError
from orchestrator_core.wire.dispatch import Delivered

STORE_RETRY_MS = 1_000

_log = structlog.get_logger("orchestratord")


class Carrying:
    """What one core decided, on its way.

    `submit` gives the core an event. `traceparent` is the W3C trace context of an attempt (job id,
    number), empty when there is none.
    """

    def __init__(
        self,
        core: Core,
        store: Store,
        relay: Relay,
        hosts: Hosts,
        submit: Callable[[Event], None],
        traceparent: Callable[[str, int], str],
    ) -> None:
        self._core = core
        self._relay = relay
        self._hosts = hosts
        self._submit = submit
        self._traceparent = traceparent
        self.followers = Followers(core, relay)
        self.replies = Replies()
        self.gate = CommitGate(
            store,
            self._release,
            self._revert,
            self._store_failed,
            self.replies.__contains__,
            self._store_slow,
        )
        self._cancels = HeldCancels(hosts.cancel, self._stops_unwritten)
        self._bringing = Bringing(relay, hosts)

    def close(self) -> None:
        """Sends nothing more that is not durable, and refuses who still waits."""
        self._cancels.close()
        self._bringing.close()
        self.replies.refuse_all(store_unavailable())

    def effects(self, effects: Sequence[Effect]) -> None:
        """Does at once what may be done, and holds back what needs the journal first."""
        records: list[Record] = []
        gated: list[Gated] = []
        for effect in effects:
            match effect:
                case AcceptRecord() | DispatchRecord():
                    records.append(effect)
                case TerminalRecord():
                    records.append(self.followers.with_output(effect))
                case SessionRecord() | SessionForgotten() | PoolDrainRecord() | CatalogRecord():
                    records.append(effect)
                case (
                    ReplyRefused()
                    | JobStarted()
                    | OfferDeclined()
                    | SendVerdicts()
                    | AttemptClosed()
                    | CancelUnconfirmed()
                    | ModelRefused()
                    | PoolVerified()
                    | ModelClosed()
                    | JobForgotten()
                ):
                    self._immediate(effect)
                case SendCancel():
                    self._cancels.hold(effect)
                    gated.append(effect)
                case _:
                    gated.append(effect)
        if records or gated:
            self.gate.add(records, gated)
            self._note_callers(records)

    def _note_callers(self, records: Sequence[Record]) -> None:
        """Who gives a job is its audience until told, and can follow it only then.

        That may take the journal longer than a job is kept without anybody.
        """
        for record in records:
            if isinstance(record, AcceptRecord) and record.spec.cancel_on_disconnect:
                self._submit(SubscribersChanged(record.spec.job_id, 1))

    def _stops_unwritten(self, effect: SendCancel) -> bool:
        """True when an attempt may be stopped although the end of its job is not durable.

        A crash then leaves a live job whose attempt is over, so only for one that was cancelled:
        nobody has been told that it ended, nobody wants its output, and its host will say so. A
        start that has not been sent must not be overtaken, and another orchestrator may go on with
        the job.
        """
        bound = self._hosts.bound(effect.host_id, (effect.job_id, effect.attempt))
        return effect.job_cancelled and bound and not self.gate.unsure

    def _immediate(self, effect: Immediate) -> None:
        match effect:
            case ReplyRefused() | ModelRefused():
                self.replies.answer(effect.reply_to, effect.refusal)
            case JobStarted():
                self.followers.started(effect)
            case SendVerdicts():
                self._hosts.send_verdicts(effect, self._relay)
                self.followers.tell_adopted(effect)
            case AttemptClosed():
                self._bringing.stop((effect.job_id, effect.attempt))
                self._hosts.unbind(effect.job_id, effect.attempt)
                if effect.retried:
                    self._relay.log(effect.job_id).wake()
            case JobForgotten():
                self._relay.forget(effect.job_id)
            case OfferDeclined() | CancelUnconfirmed() | PoolVerified() | ModelClosed():
                pass  # for the observer only
            case _:
                assert_never(effect)

    def _release(self, effect: Gated) -> None:
        match effect:
            case ReplyAccepted():
                self._tell_accepted(effect)
            case ReplyState():
                self.replies.answer(effect.reply_to, effect.job_id)
            case ReplySession(told, name) | ReplyPool(told, name) | ReplyModel(told, name):
                self.replies.answer(told, name)
            case SendStart():
                self._start(effect)
            case SendCancel():
                self._stop(effect)
            case SendRelease():
                self._hosts.release(effect)
            case SendDrain():
                self._hosts.drain(effect)
            case ConfirmEnd():
                self._submit(EndConfirmed(effect.job_id))
            case JobEnded():
                self.followers.ended(effect)
            case _:
                assert_never(effect)

    def _tell_accepted(self, effect: ReplyAccepted) -> None:
        """Tells the caller, who is no audience from here on unless it follows the job."""
        receipt = effect.receipt
        self.replies.answer(effect.reply_to, receipt)
        job = self._core.jobs.get(receipt.job_id)
        if job is not None and job.spec.cancel_on_disconnect and not receipt.duplicate:
            self._submit(SubscribersChanged(receipt.job_id, 0))

    def _stop(self, effect: SendCancel) -> None:
        """Stops an attempt at its host; one that waits for its text ends here."""
        self._cancels.durable(effect)
        if self._bringing.stop((effect.job_id, effect.attempt)):
            ended = AttemptEnded(effect.job_id, effect.attempt, 0, finish=Finish.CANCELLED)
            self._submit(ended)

    def _start(self, effect: SendStart) -> None:
        """Sends an attempt, unless it stopped counting while its record was written."""
        job_id, attempt = effect.spec.job_id, effect.attempt
        if not self._core.holds_slot(job_id, attempt):
            return
        log = self._relay.log(job_id)
        if effect.mode is StartMode.FRESH:
            log.doubtful = False  # Nothing was delivered before.
        job = self._core.jobs.get(job_id)
        former = job.unreleased if job is not None else None
        if effect.mode is not StartMode.CONTINUE:
            self._send(effect, None)
        elif former is not None and log.doubtful:
            grace_s = self._core.config.reattach_grace_ms / 1000
            tell = self.followers.tell_former
            go_on, failed = partial(self._refilled, effect, former), partial(self._fail, effect)
            self._bringing.refill((job_id, attempt), former, grace_s, tell, go_on, failed)
        elif former is not None and must_bring(effect, log, former):
            self._bring(effect, former)
        else:
            self._send(effect, continuation(effect, log, former))

    def _refilled(self, effect: SendStart, former: Attempt) -> None:
        """Goes on as if there had been no restart; without its text a continuation ends."""
        if must_bring(effect, self._relay.log(effect.spec.job_id), former):
            self._bring(effect, former)
        else:
            self._go_on(effect, former, ())

    def _bring(self, effect: SendStart, former: Attempt) -> None:
        key = effect.spec.job_id, effect.attempt
        grace_s = self._core.config.reattach_grace_ms / 1000
        go_on, failed = partial(self._go_on, effect, None), partial(self._fail, effect)
        self._bringing.begin(key, former, grace_s, go_on, failed)

    def _go_on(self, effect: SendStart, former: Attempt | None, brought: Sequence[Item]) -> None:
        """Sends a continuation whose text is here now, unless it stopped counting meanwhile.

        One whose host left meanwhile goes back to the queue: it was never sent, and is no try.
        """
        job_id, attempt = effect.spec.job_id, effect.attempt
        if not self._core.holds_slot(job_id, attempt):
            return
        follows = continuation(effect, self._relay.log(job_id), former, brought)
        if effect.host_id not in self._hosts.links and not isinstance(follows, AttemptEnded):
            left = f"host {effect.host_id} left before the attempt was sent"
            self._submit(AttemptRefused(job_id, attempt, "unreachable", left))
        else:
            self._send(effect, follows)

    def _fail(self, effect: SendStart) -> None:
        """Ends a continuation that failed before it began, unless it stopped counting."""
        if self._core.holds_slot(effect.spec.job_id, effect.attempt):
            self._submit(attempt_lost(effect))

    def _send(self, effect: SendStart, follows: Delivered | AttemptEnded | None) -> None:
        """Sends an attempt, or ends it where it cannot begin."""
        if isinstance(follows, AttemptEnded):
            self._submit(follows)
            return
        job_id = effect.spec.job_id
        traceparent = self._traceparent(job_id, effect.attempt)
        self._hosts.start(effect, self._relay.log(job_id), traceparent, follows)

    def _revert(
        self, job_ids: tuple[str, ...], replies: Sequence[ReplyAccepted | ReplyState]
    ) -> None:
        """Takes back accepts that could not be written, and tells who waited for them."""
        self._submit(AcceptsFailed(job_ids))
        for effect in replies:
            self.replies.answer(effect.reply_to, store_unavailable())

    def _store_failed(self, error: StoreError) -> None:
        _log.error(
            "store_failed",
            error=str(error),
            human="The journal cannot be written; no job is accepted until it can.",
        )

    def _store_slow(self, took_s: float) -> None:
        _log.warning(
            "store_slow",
            took_ms=int(took_s * 1000),
            human=f"The journal took {took_s:.1f} s to write; who asked about a job meanwhile, or "
            "cancelled one, was refused. Look at its disk, and at the load of this machine.",
        )


def store_unavailable(trouble: str = "cannot be written") -> Refusal:
    """Refuses what needs the journal; `trouble` says what is the matter with it."""
    message = f"the journal {trouble}, so nothing can be promised; see the server's log"
    return Refusal(Reason.STORE_UNAVAILABLE, message, STORE_RETRY_MS)
