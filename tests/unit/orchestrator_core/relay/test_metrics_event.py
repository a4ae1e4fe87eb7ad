"""How readers are told how a job is doing: the latest word, once each. ORCH-3100."""

from llamaorch.orchestrator.v1 import events_pb2
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.reader import Reader
from orchestrator_core.wire.frames import encode_event
from tests.unit.orchestrator_core.relay.logs import END, log_with, read_all


def metrics(depth: int) -> bytes:
    """An event that can be told from others."""
    return encode_event(events_pb2.JobEvent(metrics=events_pb2.Metrics(queue_depth=depth)))


def depths(reader: Reader) -> list[int]:
    """What a reader is told now of the queue; `read_all` ends, so each is told once."""
    return [each.metrics.queue_depth for each in read_all(reader) if each.HasField("metrics")]


def running(*told: int) -> OutputLog:
    """A job with one word, of which so much was told."""
    log = log_with([["a"]])
    for depth in told:
        log.set_metrics(metrics(depth))
    return log


def test_who_comes_late_is_told_the_latest_at_once() -> None:
    """Not only with the next one, which a short job does not have."""
    assert depths(running(1, 2).open(None)) == [2]


def test_nothing_is_told_twice() -> None:
    """And what is new, to whoever is there."""
    log = running(1)
    reader = log.open(None)

    first = depths(reader)
    again = depths(reader)
    log.set_metrics(metrics(5))
    new = depths(reader)

    assert (first, again, new) == ([1], [], [5])


def test_before_there_is_anything_nothing_is_told() -> None:
    """An empty event would be none."""
    assert depths(running().open(None)) == []


def test_a_job_that_has_ended_is_told_its_outcome_alone() -> None:
    """How it was doing no longer matters."""
    log = running(1)
    log.finish(END, None)

    events = read_all(log.open(None))

    assert [event.WhichOneof("event") for event in events] == ["tokens", "end"]
