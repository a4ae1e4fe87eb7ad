"""Frames of a host on their way into the relay: gaps, signs of life, what is kept of handles."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import dispatch_pb2, pool_registry_service_pb2
from orchestrator_core.core.effects import SendVerdicts, Verdict
from orchestrator_core.core.events import AttemptEnded, AttemptErrorKind, Event
from orchestrator_core.core.outcome import Reason
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.servicers.frames import FrameReader
from orchestrator_core.wire.output_frames import OutputFrame, columns_of
from orchestrator_core.wire.plausible import CHUNK_BYTES_MAX
from tests.unit.orchestrator_core.relay.logs import frames

JOBS = 5


class FakeRuntime:
    """What a frame reader uses of the runtime."""

    def __init__(self) -> None:
        self.relay = Relay(RelayLimits())
        self.now_ms = 0
        self.clock = SimpleNamespace(now_ms=lambda: self.now_ms)
        specs = (JobSpec(f"job-{n}", Needs("m")) for n in range(JOBS))
        self.core = SimpleNamespace(
            jobs={it.job_id: SimpleNamespace(job_id=it.job_id, live=True, spec=it) for it in specs}
        )
        self.progress: list[tuple[str, int]] = []
        self.events: list[Event] = []

    def submit(self, event: Event) -> None:
        """Records what the core is told."""
        self.events.append(event)

    def text_arrived(self, job: SimpleNamespace, attempt: int) -> None:
        """Records a sign of life."""
        self.progress.append((job.job_id, attempt))


def adopted(window_bytes: int = 1_024) -> tuple[FakeRuntime, HostLink, FrameReader]:
    """A link on which attempt 1 of each job is bound, to handles 1, 2, ..."""
    runtime = FakeRuntime()
    link = HostLink("host-1", "boot", 1, LinkTerms(1, 1_000, 3_000, window_bytes))
    verdicts = tuple((job_id, 1, Verdict.ADOPT) for job_id in runtime.core.jobs)
    link.registered(SendVerdicts("host-1", 1, verdicts), runtime.relay)
    return runtime, link, FrameReader(cast("Any", runtime), link)


def host_frame(
    handle: int, number: int, applied_seq: int = 1, *, ended: bool = False
) -> dispatch_pb2.HostFrame:
    """One of the frames of an output that goes `one two three four`.

    The host wrote it once it had obeyed command `applied_seq`; 1 is the answer to its registration.
    """
    frame = frames([["one "], ["two "], ["three "], ["four"]])[number]
    tokens = dispatch_pb2.TokenFrames(
        handles=[handle],
        first_indexes=[frame.first_index],
        piece_counts=[frame.pieces],
        text_offsets=[frame.text_offset],
        text_bytes=[frame.text_bytes],
        chunks=[frame.chunk],
    )
    message = dispatch_pb2.HostFrame(
        frame_seq=number, tokens=tokens, applied_dispatch_seq=applied_seq
    )
    if ended:
        message.ended.add(
            handle=handle, finish_reason=job_pb2.FINISH_REASON_EOS, text_bytes=18, next_index=4
        )
    return message


async def commands(link: HostLink) -> list[str | None]:
    """Kinds of the commands sent after the registration."""
    link.send(pool_registry_service_pb2.DispatchResponse())
    kinds: list[str | None] = []
    while (kind := (await link.next_command()).WhichOneof("command")) is not None:
        kinds.append(kind)
    return kinds[1:]


async def test_an_adopted_attempt_begins_with_the_oldest_that_is_held() -> None:
    """The host was told where to go on, so what it skips is gone, and nobody asks for it."""
    runtime, link, reader = adopted()

    for number in (1, 2):
        reader.read(host_frame(1, number))

    log = runtime.relay.log("job-0")
    assert (log.oldest_offset, log.next_offset, log.next_index) == (4, 14, 3)
    assert await commands(link) == []


async def test_a_gap_is_sought_once_and_then_accepted() -> None:
    """A host that has no more than what lies ahead is not waited for without end."""
    runtime, link, reader = adopted()

    for number in (0, 2, 3):
        reader.read(host_frame(1, number))
    held_before = runtime.relay.log("job-0").next_offset
    reader.read(host_frame(1, 3, applied_seq=2))

    log = runtime.relay.log("job-0")
    assert held_before == 4
    assert (log.oldest_offset, log.next_offset, log.next_index) == (14, 18, 4)
    assert await commands(link) == ["seek"]


async def test_frames_under_way_do_not_answer_a_request_to_go_back() -> None:
    """Written before the host read it, they say nothing of what the host holds."""
    runtime, link, reader = adopted()

    for number in (0, 2, 3):
        reader.read(host_frame(1, number))
    for number in (1, 2, 3):
        reader.read(host_frame(1, number, applied_seq=2))

    log = runtime.relay.log("job-0")
    assert (log.oldest_offset, log.next_offset) == (0, 18)
    assert log.digest() is not None
    assert await commands(link) == ["seek"]


async def test_a_gap_at_the_end_is_filled_or_accepted_too() -> None:
    """That the attempt ended does not make forget where its host was asked to go back."""
    runtime, link, reader = adopted()

    reader.read(host_frame(1, 0))
    reader.read(host_frame(1, 3, ended=True))
    reader.read(host_frame(1, 3, applied_seq=2))

    assert runtime.relay.log("job-0").next_offset == 18
    assert await commands(link) == ["seek"]


async def test_a_later_gap_is_sought_again() -> None:
    """An answer is one to the last request alone."""
    _, link, reader = adopted()

    for number, applied_seq in ((0, 1), (2, 1), (1, 2), (3, 2)):
        reader.read(host_frame(1, number, applied_seq))

    assert await commands(link) == ["seek", "seek"]


async def test_output_that_is_not_new_is_a_sign_of_life_too() -> None:
    """A gap or a repetition shows that the engine works; it is told at most once a second."""
    runtime, _, reader = adopted()

    for number, now_ms in ((1, 0), (0, 500), (0, 1_000), (0, 1_500), (0, 2_000)):
        runtime.now_ms = now_ms
        reader.read(host_frame(1, number))

    assert runtime.progress == [("job-0", 1)] * 3


async def test_nothing_is_kept_of_attempts_that_no_longer_count() -> None:
    """Attempts that are closed without a word from the host leave nothing behind."""
    _, link, reader = adopted()

    for number in range(JOBS):
        reader.read(host_frame(number + 1, 0))
        link.unbind((f"job-{number}", 1))
        link.release((f"job-{number}", 1))

    assert len(link.bindings) == 0


async def test_output_after_a_job_was_forgotten_does_not_go_to_its_old_log() -> None:
    """What a handle stands for is looked up again."""
    runtime, _, reader = adopted()
    reader.read(host_frame(1, 0))
    forgotten = runtime.relay.log("job-0")

    runtime.relay.forget("job-0")
    runtime.relay.log("job-0").begin_attempt(1)
    reader.read(host_frame(1, 0))

    assert runtime.relay.log("job-0").next_offset == 4
    assert runtime.relay.log("job-0") is not forgotten


async def test_output_of_a_job_that_is_not_kept_makes_no_log() -> None:
    """It comes until the host reads the release, which may wait for the journal."""
    runtime, _, reader = adopted()
    reader.read(host_frame(1, 0))
    runtime.relay.forget("job-0")
    del runtime.core.jobs["job-0"]

    reader.read(host_frame(1, 1))

    assert "job-0" not in runtime.relay._logs


async def test_the_end_of_a_job_that_is_not_kept_makes_no_log() -> None:
    """A host that holds it still may tell of it until it reads the release."""
    runtime, _, reader = adopted()
    runtime.relay.forget("job-0")
    del runtime.core.jobs["job-0"]

    reader.read(host_frame(1, 3, ended=True))

    assert "job-0" not in runtime.relay._logs
    assert runtime.events == []


async def test_frames_read_without_message_objects_are_applied_like_others() -> None:
    """Their output, what the host had obeyed, and which snapshots they let ripen."""
    messages = [host_frame(1, 0), host_frame(1, 1), host_frame(1, 3), host_frame(1, 3, 2)]
    left, link, reader = adopted()
    for message in messages:
        reader.read(message)
    right, other_link, other = adopted()

    for message in messages:
        columns = columns_of(message.tokens)
        other.read_output(OutputFrame(message.frame_seq, message.applied_dispatch_seq, columns))

    logs = [runtime.relay.log("job-0") for runtime in (left, right)]
    assert [log.next_offset for log in logs] == [18, 18]
    entries = [[item.entry for item in log.items()] for log in logs]
    assert entries[0] == entries[1]
    assert (link.frame_seq, left.progress) == (other_link.frame_seq, right.progress)
    assert await commands(link) == await commands(other_link) == ["seek"]


async def test_an_attempt_with_broken_output_is_given_up() -> None:
    """It is stopped and fails; nothing is acknowledged, and its later frames count for nothing."""
    runtime, link, reader = adopted()
    reader.read(host_frame(1, 0))
    broken = host_frame(1, 1)
    broken.tokens.chunks[0] = b"\xff"

    reader.read(broken)
    reader.read(host_frame(1, 1, ended=True))
    reader.read(host_frame(2, 0))

    (ended,) = runtime.events
    assert isinstance(ended, AttemptEnded)
    assert (ended.job_id, ended.attempt, ended.text_bytes) == ("job-0", 1, 8)
    assert ended.error is not None
    assert ended.error.kind is AttemptErrorKind.ENGINE_ERROR
    assert "host host-1 sent broken output" in ended.error.message
    assert runtime.relay.log("job-0").next_offset == 4
    assert runtime.relay.log("job-1").next_offset == 4
    assert await commands(link) == ["cancel"]
    assert link.key(1) is None


async def test_a_chunk_that_no_message_to_a_client_can_hold_is_broken_output() -> None:
    """Else nobody could ever read the job, and no other on the same Exchange."""
    runtime, _, reader = adopted()
    made = [frames([["x" * size]])[0] for size in (CHUNK_BYTES_MAX - 64, CHUNK_BYTES_MAX)]

    for handle, frame in enumerate(made, start=1):
        message = host_frame(handle, 0)
        message.tokens.text_bytes[0], message.tokens.chunks[0] = frame.text_bytes, frame.chunk
        reader.read(message)

    (ended,) = runtime.events
    assert isinstance(ended, AttemptEnded)
    assert ended.job_id == "job-1"
    assert ended.error is not None
    assert "is above" in ended.error.message
    assert runtime.relay.log("job-0").next_offset == CHUNK_BYTES_MAX - 64


async def test_broken_output_is_not_acknowledged() -> None:
    """The host may drop what was acknowledged."""
    _, link, reader = adopted(window_bytes=4)
    broken = host_frame(1, 0)
    broken.tokens.chunks[0] = b"\xff"

    reader.read(broken)
    reader.read(host_frame(2, 0))

    assert await commands(link) == ["cancel", "ack"]


@pytest.mark.parametrize(
    "column", ["first_indexes", "piece_counts", "text_offsets", "text_bytes", "chunks"]
)
async def test_columns_of_unequal_length_are_refused_as_a_whole(column: str) -> None:
    """Nobody can say which entry belongs to whom, so nothing of the frame is applied. LO-302."""
    runtime, link, reader = adopted()
    broken = host_frame(1, 0, ended=True)
    getattr(broken.tokens, column).append(b"" if column == "chunks" else 0)

    with pytest.raises(RefusalError) as refused:
        reader.read(broken)

    (violation,) = refused.value.refusal.violations
    assert refused.value.refusal.reason is Reason.INVALID_PARAMS
    assert violation.field == f"frame.tokens.{column}"
    assert "has 2 entries, but `handles` has 1" in violation.description
    assert runtime.events == []
    assert runtime.relay.log("job-0").next_offset == 0
    assert link.key(1) == ("job-0", 1)


@pytest.mark.parametrize("field", ["frame_seq", "applied_dispatch_seq"])
async def test_a_frame_whose_number_cannot_be_true_is_refused(field: str) -> None:
    """It would let snapshots, or gaps, count as read for ever. LO-203."""
    _, _, reader = adopted()
    broken = host_frame(1, 0)
    setattr(broken, field, 2**63)

    with pytest.raises(RefusalError) as refused:
        reader.read(broken)

    assert [v.field for v in refused.value.refusal.violations] == [f"frame.{field}"]


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("usage", "tokens_in"),
        ("usage", "tokens_cached"),
        ("usage", "tokens_out"),
        ("usage", "prefill_time_ms"),
        ("usage", "decode_time_ms"),
        ("", "next_index"),
        ("", "text_bytes"),
    ],
)
async def test_an_end_whose_numbers_cannot_be_true_fails_its_attempt(part: str, field: str) -> None:
    """They would be added up, learned from and written down. LO-203."""
    runtime, link, reader = adopted()
    frame = host_frame(1, 3, ended=True)
    setattr(frame.ended[0].usage if part else frame.ended[0], field, 2**63 - 1)
    frame.ended.add(handle=2, finish_reason=job_pb2.FINISH_REASON_EOS)

    reader.read(frame)

    broken, good = runtime.events
    assert isinstance(broken, AttemptEnded)
    assert broken.error is not None
    assert f"{field} is {2**63 - 1}, which is above" in broken.error.message
    assert isinstance(good, AttemptEnded)
    assert good.error is None
    assert (link.key(1), link.key(2)) == (None, ("job-1", 1))


@pytest.mark.parametrize(
    ("column", "value"),
    [("first_indexes", 2**63), ("text_offsets", 2**64 - 1), ("piece_counts", 2**32 - 1)],
)
async def test_output_whose_place_cannot_be_true_is_given_up(column: str, value: int) -> None:
    """The next place would be computed from it. LO-302."""
    runtime, link, reader = adopted()
    frame = host_frame(1, 0)
    getattr(frame.tokens, column)[0] = value

    reader.read(frame)

    (ended,) = runtime.events
    assert isinstance(ended, AttemptEnded)
    assert ended.text_bytes < 2**42
    assert runtime.relay.log("job-0").next_index == 0
    assert link.key(1) is None
