"""Whether an attempt can go on from what was delivered, and from what exactly. LO-304."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator_core.core.effects import SendStart
from orchestrator_core.core.events import AttemptEnded, AttemptError, AttemptErrorKind
from orchestrator_core.core.job import Attempt
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.relay.delivered import delivered
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.wire.dispatch import Delivered
from orchestrator_core.wire.jobs import SPEC_BYTES_MAX

_TOKEN_ID_BYTES = 5


def continuation(
    start: SendStart,
    log: OutputLog,
    former: Attempt | None = None,
    brought: Sequence[Item] = (),
) -> Delivered | AttemptEnded | None:
    """What the attempt follows; None when nothing was delivered, or the end that it has instead.

    It ends at once where the delivered output is all that was asked for, and where that output is
    no longer held or too long to be sent. A host that ran the `former` attempt, and still holds its
    output, needs no text. What is `brought` stands in for what was evicted.
    """
    follows = delivered(log, brought)
    if follows is None:
        held = _held_there(start, log, former)
        return held or attempt_lost(start)
    if not follows.text_bytes:
        return None
    most = start.spec.max_tokens
    if most is not None and follows.tokens >= most:
        return AttemptEnded(
            start.spec.job_id,
            start.attempt,
            frame_seq=0,
            finish=Finish.LENGTH,
            usage=Usage(tokens_out=follows.tokens),
            text_bytes=follows.text_bytes,
            text_digest=follows.digest,
        )
    room = SPEC_BYTES_MAX - len(start.spec.payload) - follows.text_bytes
    if room < 0:
        held = _held_there(start, log, former)
        return held or _lost(start, "the output that was to be continued is too long to be sent")
    fits = start.same_tokens and len(follows.token_ids) * _TOKEN_ID_BYTES <= room
    return follows if fits else replace(follows, token_ids=())


def must_bring(start: SendStart, log: OutputLog, former: Attempt | None) -> bool:
    """True when text that the attempt follows was evicted, and another host is to bring it."""
    size = len(start.spec.payload) + log.next_offset
    lacks = bool(log.oldest_offset) and not log.doubtful and log.digest() is not None
    fits = size <= SPEC_BYTES_MAX
    return lacks and fits and former is not None and _held_there(start, log, former) is None


def _held_there(start: SendStart, log: OutputLog, former: Attempt | None) -> Delivered | None:
    """What proves the output to the host that holds all of it: its length and digest.

    The `former` attempt is the last that told any; the log may know of later ones that never began.
    """
    digest = log.digest()
    if former is None or log.doubtful or digest is None or former.host_id != start.host_id:
        return None
    return Delivered(former.number, "", log.next_offset, digest, tokens=0, token_ids=())


def attempt_lost(start: SendStart) -> AttemptEnded:
    """The end of an attempt whose text cannot be had."""
    return _lost(start, "the output that was to be continued is no longer held")


def _lost(start: SendStart, what: str) -> AttemptEnded:
    message = f"{what}; enqueue the job again"
    error = AttemptError(AttemptErrorKind.OUTPUT_LOST, message)
    return AttemptEnded(start.spec.job_id, start.attempt, frame_seq=0, error=error)
