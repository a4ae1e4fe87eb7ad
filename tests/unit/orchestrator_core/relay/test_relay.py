"""The output of all jobs within one bound."""

import itertools
import tracemalloc
from dataclasses import astuple
from functools import partial

import pytest

from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import RefusalError
from orchestrator_core.relay.items import ITEM_BYTES, Frame
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.relay import Relay, RelayLimits
from tests.unit.orchestrator_core.relay.logs import END, ROOMY, STARTED, frames, point, read_all


def test_relay_drops_output_of_ended_jobs_first() -> None:
    """Beyond the total, jobs that have ended lose their output before those that run."""
    relay = Relay(RelayLimits(job_bytes=ROOMY, total_bytes=3_000))
    for job_id in ("ended", "live"):
        relay.log(job_id).begin_attempt(1)
    for frame in frames([["x" * 1_000]]):
        relay.append_text("ended", frame)
        relay.append_text("live", frame)
    relay.finish("ended", END, None)

    relay.append_text("live", frames([["x" * 1_000], ["y" * 1_000]])[1])

    assert relay.log("ended").bytes_held == 0
    assert relay.log("live").bytes_held > 2_000


def test_room_is_made_for_more_than_one_frame() -> None:
    """A full relay looks for what to drop once per tenth, not with every frame."""
    relay = Relay(RelayLimits(job_bytes=ROOMY, total_bytes=100_000))
    (old,) = frames([["x" * 1_000]])
    for n in range(100):
        relay.log(f"ended-{n}").begin_attempt(1)
        relay.append_text(f"ended-{n}", old)
        relay.finish(f"ended-{n}", END, 1_000)
    relay.log("live").begin_attempt(1)
    totals = [relay.bytes_held]

    for frame in frames([["y" * 100]] * 200):
        relay.append_text("live", frame)
        totals.append(relay.bytes_held)

    shrunk = [before for before, after in itertools.pairwise(totals) if after < before]
    assert max(totals) <= 100_000
    assert 4 <= len(shrunk) <= 7
    assert relay.log("live").oldest_offset == 0


def test_nothing_is_asked_twice_for_what_it_has_not() -> None:
    """Jobs that lost their output are not looked at again; one that gets some more is."""
    relay = Relay(RelayLimits(job_bytes=ROOMY, total_bytes=10_000))
    made = frames([["x" * 1_000]] * 30)
    evictions: list[str] = []
    for job_id in ("ended", "idle", "live"):
        log = relay.log(job_id)
        log.begin_attempt(1)
        relay.append_text(job_id, made[0])
        log.open(None, partial(evictions.append, job_id))
    relay.finish("ended", END, 2_000)
    evictions.clear()

    for frame in made[1:]:
        relay.append_text("live", frame)
    told = [job_id for job_id in evictions if job_id != "live"]
    relay.append_text("ended", made[1])
    more_than_all = relay.log("ended").bytes_held
    for frame in frames([["x" * 1_000]] * 45)[30:]:
        relay.append_text("live", frame)

    assert told == ["ended", "idle"]
    assert more_than_all > 1_000
    assert relay.log("ended").bytes_held == 0
    assert relay.bytes_held == relay.log("live").bytes_held


def test_relay_account_is_exact() -> None:
    """Whatever is added, evicted, jumped or forgotten, the total is the sum of what is held."""
    relay = Relay(RelayLimits(job_bytes=2_000, total_bytes=5_000))
    jobs = ["a", "b", "c", "d"]
    batches = [["x" * 300]] * 20
    for job_id in jobs:
        relay.log(job_id).begin_attempt(1)
    for frame in frames(batches)[:10] + frames(batches)[15:]:
        for job_id in jobs:
            relay.append_text(job_id, frame, accept_gap=True)
            relay.append_event(job_id, STARTED)
            relay.log(job_id).open(point(b"x" * (relay.log(job_id).next_offset)))
            assert relay.bytes_held == sum(relay.log(it).bytes_held for it in jobs) <= 5_000
    for job_id in jobs:
        relay.forget(job_id)

    assert relay.bytes_held == 0


def test_the_account_is_what_the_memory_is() -> None:
    """Small pieces cost far more than their text: the bound is on what they really take."""
    made = [astuple(frame) for frame in frames([[" tok"]] * 5_000)]
    relay = Relay(RelayLimits())
    relay.log("a").begin_attempt(1)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    for fields in made:
        relay.append_text("a", Frame(*fields))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 0.8 < relay.bytes_held / (after - before) < 1.25


def test_the_cost_of_items_leaves_the_window_of_a_job_as_it_is() -> None:
    """How far back a reader can resume follows from the encoded output alone."""
    log = OutputLog(40_000)
    log.begin_attempt(1)

    for frame in frames([[" tok"]] * 1_000):
        log.append_text(frame)

    assert log.oldest_offset == 0
    assert log.bytes_held > 1_000 * ITEM_BYTES


def test_readers_of_a_forgotten_job_are_told_not_found() -> None:
    """A job that is not kept any longer ends the streams of who still follows it."""
    relay = Relay(RelayLimits())
    woken: list[str] = []
    reader = relay.log("a").open(None, lambda: woken.append("a"))
    reader.take()

    relay.forget("a")

    assert woken == ["a"]
    with pytest.raises(RefusalError) as caught:
        reader.take()
    assert caught.value.refusal.reason is Reason.NOT_FOUND
    assert caught.value.refusal.resource == "a"


def test_a_reader_that_is_behind_when_its_job_is_forgotten_lacks_nothing() -> None:
    """There is no text left to be brought to it."""
    relay = Relay(RelayLimits())
    relay.log("a").begin_attempt(1)
    for frame in frames([["one "], ["two"]]):
        relay.append_text("a", frame)
    reader = relay.log("a").open(None)

    relay.forget("a")

    assert not reader.lacks
    with pytest.raises(RefusalError) as caught:
        reader.take()
    assert caught.value.refusal.reason is Reason.NOT_FOUND


def test_who_has_nothing_is_told_of_the_start_although_others_took_its_room() -> None:
    """`started` comes before all else, also where it was evicted before there was text. ORCH-2002.

    That is so for readers that were there, that came later, and that came after the end.
    """
    relay = Relay(RelayLimits(job_bytes=ROOMY, total_bytes=3_000))
    log = relay.log("quiet")
    log.begin_attempt(1)
    relay.append_event("quiet", STARTED)
    there = log.open(None)
    relay.log("loud").begin_attempt(1)
    for frame in frames([["x" * 1_000]] * 4):
        relay.append_text("loud", frame)
    assert not list(log.items())
    silent = log.open(None)
    kinds = [[event.WhichOneof("event") for event in read_all(silent)]]

    (frame,) = frames([["hello"]])
    relay.append_text("quiet", frame)
    kinds += [[event.WhichOneof("event") for event in read_all(each)] for each in (there, silent)]
    relay.finish("quiet", END, 5)
    kinds += [[event.WhichOneof("event") for event in read_all(log.open(None))]]
    kinds += [[event.WhichOneof("event") for event in read_all(log.open(point(b"hello")))]]

    assert kinds == [
        ["started"],
        ["started", "tokens"],
        ["tokens"],
        ["started", "tokens", "end"],
        ["end"],
    ]
