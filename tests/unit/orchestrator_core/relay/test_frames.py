"""Frames of a host on their way into the relay: gaps, signs of life, what is kept of handles."""

from types import SimpleNamespace
from typing import Any, cast

from llamaorch.pool.v1 import dispatch_pb2, pool_registry_service_pb2
from orchestrator_core.core.effects import SendVerdicts, Verdict
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.servicers.frames import FrameReader
from tests.unit.orchestrator_core.relay.test_log import frames

JOBS = 5


class FakeRuntime:
    """What a frame reader uses of the runtime."""

    def __init__(self) -> None:
        self.relay = Relay(RelayLimits())
        self.now_ms = 0
        self.clock = SimpleNamespace(now_ms=lambda: self.now_ms)
        self.core = SimpleNamespace(
            jobs={f"job-{n}": SimpleNamespace(job_id=f"job-{n}", live=True) for n in range(JOBS)}
        )
        self.progress: list[tuple[str, int]] = []

    def text_arrived(self, job: SimpleNamespace, attempt: int) -> None:
        """Records a sign of life."""
        self.progress.append((job.job_id, attempt))


def adopted() -> tuple[FakeRuntime, HostLink, FrameReader]:
    """A link on which attempt 1 of each job is bound, to handles 1, 2, ..."""
    runtime = FakeRuntime()
    link = HostLink("host-1", "boot", 1, LinkTerms(1, 1_000, 3_000, 1_024))
    verdicts = tuple((job_id, 1, Verdict.ADOPT) for job_id in runtime.core.jobs)
    link.registered(SendVerdicts("host-1", 1, verdicts), runtime.relay)
    return runtime, link, FrameReader(cast("Any", runtime), link)


def host_frame(handle: int, number: int) -> dispatch_pb2.HostFrame:
    """One of the frames of an output that goes `one two three`."""
    frame = frames([["one "], ["two "], ["three"]])[number]
    tokens = dispatch_pb2.TokenFrames(
        handles=[handle],
        first_indexes=[frame.first_index],
        piece_counts=[frame.pieces],
        text_offsets=[frame.text_offset],
        text_bytes=[frame.text_bytes],
        chunks=[frame.chunk],
    )
    return dispatch_pb2.HostFrame(frame_seq=number, tokens=tokens)


async def commands(link: HostLink) -> list[str | None]:
    """Kinds of the commands sent after the registration."""
    link.send(pool_registry_service_pb2.DispatchResponse())
    kinds: list[str | None] = []
    while (kind := (await link.next_command()).WhichOneof("command")) is not None:
        kinds.append(kind)
    return kinds[1:]


async def test_a_gap_is_sought_once_and_then_accepted() -> None:
    """A host that has no more than what lies ahead is not waited for without end."""
    runtime, link, reader = adopted()

    reader.read(host_frame(1, 1))
    held_before = runtime.relay.log("job-0").next_offset
    reader.read(host_frame(1, 1))
    reader.read(host_frame(1, 2))

    log = runtime.relay.log("job-0")
    assert held_before == 0
    assert (log.oldest_offset, log.next_offset, log.next_index) == (4, 13, 3)
    assert await commands(link) == ["seek"]


async def test_a_gap_that_the_host_fills_loses_nothing() -> None:
    """A host that goes back as asked fills the log from its beginning."""
    runtime, _, reader = adopted()

    for number in (1, 0, 1, 2):
        reader.read(host_frame(1, number))

    log = runtime.relay.log("job-0")
    assert (log.oldest_offset, log.next_offset) == (0, 13)
    assert log.digest() is not None


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

    assert len(reader._heard) == 1
