"""What clients were told: one outcome, all of the text, nothing mixed, nothing twice."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from math import inf

from faults.history import (
    TERMINAL_STATES,
    UNKNOWN_JOB,
    AttemptBegan,
    CancelAnswered,
    Crashed,
    EnqueueAcked,
    JournalAccepted,
    JournalEnded,
    Outcome,
    Resumed,
    Started,
    StatusSeen,
    StreamBroken,
    StreamOpened,
    TextDelivered,
)
from faults.observed import Observed, StreamEvent, Violation, state_of

INTEGRITY = "STREAM_INTEGRITY"
LOST = "RESUME_WINDOW"


def one_outcome(observed: Observed) -> Iterator[Violation]:
    """I1: an acknowledged job has one terminal state, for everybody and for ever."""
    for job_id, ends in observed.ends.items():
        for other in ends[1:]:
            if state_of(other) != state_of(ends[0]):
                yield Violation("I1", job_id, "two terminal states", (ends[0], other))
    for event in observed.events:
        if isinstance(event, StatusSeen | CancelAnswered):
            yield from _taken_back(observed, event)
    for job_id in observed.expect.must_finish:
        ended = observed.ends.get(job_id, [])
        if not any(state_of(end) == "FINISHED" for end in ended):
            yield Violation("I1", job_id, "did not finish", tuple(ended[:1]))


def _taken_back(observed: Observed, seen: StatusSeen | CancelAnswered) -> Iterator[Violation]:
    """A question asked after a promise was known must not be answered as if it had not been."""
    acked, ends = observed.acked.get(seen.job_id), observed.ends.get(seen.job_id)
    if seen.state == UNKNOWN_JOB:
        kept_ms = observed.expect.retention_ms
        if ends is not None and kept_ms is not None and seen.at_ms >= ends[0].at_ms + kept_ms:
            return
        if acked is not None and acked.at_ms < seen.asked_ms:
            yield Violation("I1", seen.job_id, "acknowledged, then unknown", (acked, seen))
    elif seen.state not in TERMINAL_STATES and ends is not None and ends[0].at_ms < seen.asked_ms:
        yield Violation("I1", seen.job_id, "live again after its end", (ends[0], seen))


def text_whole(observed: Observed) -> Iterator[Violation]:
    """I2: text arrives in order without gap or repetition, and is what the digests say."""
    longest: dict[str, tuple[bytes, TextDelivered]] = {}
    lost = {broken.job_id for broken in observed.all(StreamBroken) if broken.reason == LOST}
    for events in observed.streams.values():
        reader = _Text()
        for event in events:
            what = reader.take(event)
            if what:
                yield Violation("I2", event.job_id, what, (*reader.last(), event))
        yield from _as_expected(observed, reader)
        # Who was told that its text is gone may have had another than those who came later.
        if reader.delivered is not None and reader.delivered.job_id not in lost:
            yield from _same(reader, reader.delivered, longest)


def text_as_generated(observed: Observed) -> Iterator[Violation]:
    """I2: what a reader has at any time is what the attempt's engine has for it, to the byte.

    So a continuation follows on exactly what was delivered, and a replay repeats it.
    """
    began = {(event.job_id, event.attempt): event for event in observed.all(AttemptBegan)}
    for events in observed.streams.values():
        reader = _Text()
        for event in events:
            reader.take(event)
            text = reader.delivered
            source = began.get((text.job_id, text.attempt)) if text is not None else None
            if source is None or source.text is None:
                continue
            whole, data = source.text.encode()[reader.begin :], bytes(reader.data)
            ended = isinstance(event, Outcome) and event.state == "FINISHED"
            if not whole.startswith(data) or (ended and whole != data):
                what = f"not what its engine has: {_difference(data, whole, reader.begin)}"
                yield Violation("I2", event.job_id, what, (source, event))


class _Text:
    """The text of one stream. What began later than at 0 has no digest that could be compared."""

    def __init__(self) -> None:
        self.begin = self.offset = self.attempt = 0
        self.data = bytearray()
        self.delivered: TextDelivered | None = None
        self.outcome: Outcome | None = None

    def last(self) -> tuple[TextDelivered, ...]:
        return () if self.delivered is None else (self.delivered,)

    def take(self, event: StreamEvent) -> str:
        """Adds an event; returns what is wrong with it, or nothing."""
        match event:
            case StreamOpened():
                self.begin = self.offset = event.text_offset
                self.attempt = event.attempt
            case Resumed(mode="RESTARTED"):
                self.begin = self.offset = 0
                self.data.clear()
            case TextDelivered():
                return self._text(event)
            case Outcome():
                self.outcome = event
                return self._whole(event)
            case StreamBroken(reason=reason) if reason == INTEGRITY:
                return "the reader found a defect in what the server sent"
            case _:
                pass
        return ""

    def _text(self, event: TextDelivered) -> str:
        what = ""
        if event.text_offset != self.offset:
            kind = "a gap" if event.text_offset > self.offset else "a repetition"
            what = f"{kind}: text from byte {event.text_offset}, {self.offset} were delivered"
        elif not self._proven(event.prefix_digest):
            what = "the digest of the text before it differs"
        data = event.text.encode()
        self.data += data
        self.offset = event.text_offset + len(data)
        self.attempt = event.attempt
        self.delivered = event
        return what

    def _whole(self, event: Outcome) -> str:
        if event.state == "FINISHED" and event.text_bytes not in (None, self.offset):
            return f"{event.text_bytes} bytes in all, {self.offset} were delivered"
        return "" if self._proven(event.text_digest) else "the digest of the whole text differs"

    def _proven(self, told: int | None) -> bool:
        """False when the server's digest is not that of the text so far."""
        return told is None or self.begin > 0 or told == digest(self.data)


def _as_expected(observed: Observed, reader: _Text) -> Iterator[Violation]:
    """Compares a stream with the text that the job must have, where that is known."""
    if reader.delivered is None and reader.outcome is None:
        return
    event = reader.delivered or reader.outcome
    assert event is not None, "one of them is there"
    job_id, data, begin = event.job_id, bytes(reader.data), reader.begin
    expected = observed.expect.texts.get(job_id)
    if expected is not None:
        whole = expected.encode()[begin:]
        finished = reader.outcome is not None and reader.outcome.state == "FINISHED"
        if not whole.startswith(data) or (finished and whole != data):
            what = f"other text than expected: {_difference(data, whole, begin)}"
            yield Violation("I2", job_id, what, (event,))


def _same(
    reader: _Text, delivered: TextDelivered, longest: dict[str, tuple[bytes, TextDelivered]]
) -> Iterator[Violation]:
    """Compares a stream with what others were told of the same job."""
    if reader.begin:
        return
    job_id, data = delivered.job_id, bytes(reader.data)
    other, proof = longest.get(job_id, (b"", delivered))
    if not (data.startswith(other) or other.startswith(data)):
        what = f"two readers got different text: {_difference(data, other, 0)}"
        yield Violation("I2", job_id, what, (proof, delivered))
    if len(data) >= len(other):
        longest[job_id] = (data, delivered)


def _difference(data: bytes, other: bytes, begin: int) -> str:
    pairs = zip(data, other, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(data), len(other)))
    return f"from byte {begin + at}: {data[at : at + 16]!r} for {other[at : at + 16]!r}"


def digest(data: bytes | bytearray) -> int:
    """First eight bytes, big-endian, of the SHA-256: as the wire's `prefix_digest`."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def tokens_counted(observed: Observed) -> Iterator[Violation]:
    """I2: a finished job has as many tokens as were asked for, whatever it took to make them."""
    for end in observed.all(Outcome):
        expected = observed.expect.tokens.get(end.job_id)
        told = end.tokens_out
        if end.state == "FINISHED" and None not in (expected, told) and told != expected:
            yield Violation("I2", end.job_id, f"{told} tokens, {expected} were asked for", (end,))


def attempts_not_mixed(observed: Observed) -> Iterator[Violation]:
    """I3: text of another attempt follows only after the stream announced that attempt."""
    for events in observed.streams.values():
        announced = delivered = 0
        for event in events:
            match event:
                case StreamOpened():
                    announced = delivered = event.attempt
                case Started() | Resumed():
                    announced = max(announced, event.attempt)
                    if isinstance(event, Started) and delivered not in (0, event.attempt):
                        what = f"`started` of attempt {event.attempt} amid the text of {delivered}"
                        yield Violation("I3", event.job_id, what, (event,))
                case TextDelivered():
                    if event.attempt != announced:
                        what = f"text of attempt {event.attempt}, announced was {announced}"
                        yield Violation("I3", event.job_id, what, (event,))
                    delivered = event.attempt
                case _:
                    pass


def nothing_after_the_end(observed: Observed) -> Iterator[Violation]:
    """I4: nothing follows the outcome on a stream."""
    for events in observed.streams.values():
        end: Outcome | None = None
        for event in events:
            if end is not None:
                yield Violation("I4", event.job_id, "an event after the outcome", (end, event))
            elif isinstance(event, Outcome):
                end = event


def text_kept(observed: Observed) -> Iterator[Violation]:
    """I2: the text of a finished job can be had as long as the host that generated its end lives.

    It has all of it, whatever becomes of the engine, and what a continuation followed on included.
    But nobody has what a reader that acknowledges has read: who comes later has lost nothing. And
    nobody can go on from other text, of an attempt whose host was killed: that is lost with it.
    """
    finished = {e.job_id for e in observed.all(JournalEnded) if e.state == "FINISHED"}
    began = {(event.job_id, event.attempt): event for event in observed.all(AttemptBegan)}
    last = {job_id: began[job_id, attempt] for job_id, attempt in sorted(began)}
    let_go = _let_go(observed)
    for events in observed.streams.values():
        reader = _Text()
        for event in events:
            reader.take(event)
            if not isinstance(event, StreamBroken) or event.reason != LOST:
                continue
            source = last.get(event.job_id)
            if source is None or _crashed(observed, source, event.at_ms):
                continue
            own = began.get((event.job_id, reader.attempt), source)
            if _crashed(observed, own, event.at_ms) and not _same_so_far(own, source, reader):
                continue
            excused = any(
                at_ms <= event.at_ms and offset > reader.offset
                for at_ms, offset in let_go.get(event.job_id, ())
            )
            if event.job_id in finished and not excused:
                proof = (source, event)
                yield Violation("I2", event.job_id, "text was lost that its host held", proof)


def _same_so_far(own: AttemptBegan, source: AttemptBegan, reader: "_Text") -> bool:
    """True where what a reader has of its own attempt is what another begins with, or may be."""
    if own.text is None or source.text is None:
        return True
    had = own.text.encode()[: reader.begin] + reader.data
    return source.text.encode().startswith(had)


def _crashed(observed: Observed, began: AttemptBegan, until_ms: int) -> bool:
    """True when the host of an attempt was killed after it began."""
    return any(
        crashed.process == began.host and began.at_ms <= crashed.at_ms <= until_ms
        for crashed in observed.all(Crashed)
    )


def _let_go(observed: Observed) -> dict[str, list[tuple[int, float]]]:
    """What readers that acknowledge have read, by job: when, and up to which byte."""
    read: dict[str, list[tuple[int, float]]] = {}
    for events in observed.streams.values():
        if not any(isinstance(event, StreamOpened) and event.acknowledges for event in events):
            continue
        reader = _Text()
        for event in events:
            reader.take(event)
            offset = inf if isinstance(event, Outcome) else reader.offset
            read.setdefault(event.job_id, []).append((event.at_ms, offset))
    return read


def one_job_per_request(observed: Observed) -> Iterator[Violation]:
    """I12: a request is one job, however often it was sent."""
    told: dict[str, EnqueueAcked] = {}
    for acked in observed.all(EnqueueAcked):
        first = told.setdefault(acked.request_id, acked)
        if first.job_id != acked.job_id:
            yield Violation("I12", acked.job_id, "two jobs for one request", (first, acked))
    written: dict[str, JournalAccepted] = {}
    for record in observed.all(JournalAccepted):
        earlier = written.setdefault(record.request_id or record.job_id, record)
        if earlier.job_id != record.job_id:
            yield Violation("I12", record.job_id, "two accepts of one request", (earlier, record))


RULES: Sequence[Callable[[Observed], Iterator[Violation]]] = (
    one_outcome,
    text_whole,
    text_as_generated,
    tokens_counted,
    text_kept,
    attempts_not_mixed,
    nothing_after_the_end,
    one_job_per_request,
)
