"""Whether an attempt can go on from what was delivered. LO-304."""

from dataclasses import replace

from orchestrator_core.core.effects import SendStart
from orchestrator_core.core.events import AttemptEnded, AttemptErrorKind
from orchestrator_core.core.job import Attempt
from orchestrator_core.core.outcome import Finish
from orchestrator_core.core.spec import StartMode
from orchestrator_core.hosts.continuing import continuation
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.wire.dispatch import Delivered
from orchestrator_core.wire.jobs import SPEC_BYTES_MAX
from tests.unit.orchestrator_core.core.build import spec
from tests.unit.orchestrator_core.relay.logs import digest, sent

START = SendStart("h", "p", "p#1", 2, spec("a"), StartMode.CONTINUE, remaining_ms=None)


def log_of(*pieces: str) -> OutputLog:
    """A log with these pieces, one token each."""
    log = OutputLog(8 << 20)
    log.begin_attempt(1)
    if pieces:
        assert log.append_text(sent(list(pieces), 0, len(pieces), ids=True))
    return log


def test_it_goes_on_from_text_and_tokens() -> None:
    """Within the replica set the ids are used, elsewhere they would mean other text."""
    log = log_of("one ", "two ")

    same = continuation(START, log)
    other = continuation(replace(START, same_tokens=False), log)

    assert same == Delivered(1, "one two ", 8, digest(b"one two "), 2, (0, 1))
    assert isinstance(same, Delivered)
    assert other == replace(same, token_ids=())


def test_without_output_it_begins_at_the_beginning() -> None:
    """Nothing to go on from, and nothing that a client could have."""
    assert continuation(START, log_of()) is None


def test_what_is_all_there_ends_at_its_length() -> None:
    """No further token may be generated: the job has what it asked for."""
    start = replace(START, spec=spec("a", max_tokens=2))

    ended = continuation(start, log_of("one ", "two "))

    assert isinstance(ended, AttemptEnded)
    assert (ended.job_id, ended.attempt, ended.finish) == ("a", 2, Finish.LENGTH)
    assert (ended.text_bytes, ended.text_digest) == (8, digest(b"one two "))
    assert ended.usage.tokens_out == 2


def test_output_that_is_gone_is_a_typed_end() -> None:
    """So it is after a restart that left the log empty."""
    log = log_of()
    log.doubtful = True

    ended = continuation(START, log)

    assert isinstance(ended, AttemptEnded)
    assert ended.error is not None
    assert ended.error.kind is AttemptErrorKind.OUTPUT_LOST
    assert "no longer held" in ended.error.message


def test_a_command_stays_within_one_message() -> None:
    """Ids are left out first; text that does not fit is a typed end."""
    log = log_of("one ", "two ")
    tight = replace(START, spec=spec("a", payload=b"x" * (SPEC_BYTES_MAX - 8)))
    full = replace(START, spec=spec("a", payload=b"x" * (SPEC_BYTES_MAX - 7)))

    found, ended = continuation(tight, log), continuation(full, log)

    assert isinstance(found, Delivered)
    assert found.token_ids == ()
    assert isinstance(ended, AttemptEnded)
    assert ended.error is not None
    assert "too long" in ended.error.message


def test_a_host_goes_on_from_what_it_holds_also_after_an_attempt_that_never_began() -> None:
    """A refusal between costs nothing, although that text is too long to be sent."""
    log = OutputLog(1 << 20)
    log.begin_attempt(1)
    pieces = ["x" * 400_000] * 12
    for at in range(len(pieces)):
        assert log.append_text(sent(pieces, at, at + 1, ids=True))
    former = Attempt("a", 1, "p", "p#0", "h", sent_ms=0)
    log.begin_attempt(2)
    start = replace(START, attempt=3)

    here, elsewhere = (
        continuation(start, log, replace(former, host_id=host_id)) for host_id in ("h", "other")
    )

    size = sum(map(len, pieces))
    assert size > SPEC_BYTES_MAX
    assert here == Delivered(1, "", size, digest("".join(pieces).encode()), 0, ())
    assert isinstance(elsewhere, AttemptEnded)
