"""What a host tells of an engine at most, and what the orchestrator takes of it."""

from dataclasses import replace

import pytest

from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from orchestrator_core.core.outcome import Usage as TakenUsage
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.wire.dispatch import attempt_ended
from orchestrator_core.wire.plausible import MEMORY_BYTES_MAX
from orchestrator_core.wire.snapshots import ID_CHARS_MAX, parse_snapshot
from pool_managerd.attempts.run import usage_of
from pool_managerd.core.attempts import AttemptKey, AttemptLog, EndReason, Terminal
from pool_managerd.core.tellable import (
    BYTES_MAX,
    TELLABLE_COUNT_MAX,
    TELLABLE_SLOTS_MAX,
    TELLABLE_TEXT_CHARS_MAX,
    TELLABLE_TIME_MS_MAX,
)
from pool_managerd.engines.port import EngineInfo, PreloadError, Usage
from pool_managerd.link.wire import ended

COUNTS = dict.fromkeys(("tokens_in", "tokens_cached", "tokens_out"), TELLABLE_COUNT_MAX)
TIMES = dict.fromkeys(("prefill_time_ms", "decode_time_ms"), TELLABLE_TIME_MS_MAX)
MOST = COUNTS | TIMES


def told(usage: Usage) -> dispatch_pb2.AttemptEnded:
    """The end of an attempt as a host tells it, with what an engine counted."""
    log = AttemptLog(AttemptKey("j", 1), ("p", "r"))
    log.end(Terminal(EndReason.EOS, usage_of(usage)))
    return ended(log)


def engine(slots_total: int) -> EngineInfo:
    """An engine that tells so many slots."""
    return EngineInfo("mock", "1", "m", "", "", slots_total, 1)


def test_the_largest_counts_and_times_of_an_engine_are_taken() -> None:
    """An attempt that finished must not be malformed output for what its engine counted."""
    message = told(Usage(**MOST))

    taken = attempt_ended(message, ("j", 1), 1)

    assert {name: getattr(message.usage, name) for name in MOST} == MOST
    assert taken.usage.tokens_in == TELLABLE_COUNT_MAX


def test_counts_and_times_beyond_are_not_told() -> None:
    """They count as unknown, and the attempt stands."""
    message = told(Usage(**{name: most + 1 for name, most in MOST.items()}))

    taken = attempt_ended(message, ("j", 1), 1)

    assert not message.usage.ListFields()
    assert taken.usage == TakenUsage()


def test_the_most_slots_of_an_engine_are_taken() -> None:
    """An engine that starts is not refused in every snapshot."""
    slots = engine(TELLABLE_SLOTS_MAX).slots_total
    message = snapshot_pb2.PoolSnapshot(
        pool_id="p", replica_id="r", host_id="h", slots_total=slots, slots_free=slots
    )
    message.state = snapshot_pb2.POOL_STATE_READY

    taken = parse_snapshot(message)

    assert isinstance(taken, PoolSnapshot), taken
    assert taken.slots_total == TELLABLE_SLOTS_MAX


def test_more_slots_are_refused_where_the_engine_starts() -> None:
    """Its pool says so, which nobody would see of a snapshot that is refused."""
    with pytest.raises(PreloadError, match="the engine tells slots_total of 65537"):
        engine(TELLABLE_SLOTS_MAX + 1)


TEXTS = ("engine", "engine_version", "model_id", "model_digest", "sampler_profile_version")


@pytest.mark.parametrize("name", TEXTS)
def test_the_longest_texts_of_an_engine_are_taken_and_longer_ones_refused_at_its_start(
    name: str,
) -> None:
    """The orchestrator would refuse each of its snapshots: the pool says so early."""
    longest = replace(engine(1), **{name: "x" * TELLABLE_TEXT_CHARS_MAX})
    message = snapshot_pb2.PoolSnapshot(pool_id="p", replica_id="r", host_id="h")
    setattr(message, name, getattr(longest, name))

    assert isinstance(parse_snapshot(message), PoolSnapshot)
    assert TELLABLE_TEXT_CHARS_MAX == ID_CHARS_MAX
    with pytest.raises(PreloadError, match=f"tells {name} of 257 characters, above 256"):
        replace(engine(1), **{name: "x" * (TELLABLE_TEXT_CHARS_MAX + 1)})


@pytest.mark.parametrize("name", ["kv_bytes_per_token", "kv_slot_bytes"])
def test_a_cache_that_no_memory_could_hold_is_refused_at_the_start(name: str) -> None:
    """Bytes are told up to what the orchestrator takes, those of all slots together."""
    replace(engine(4), **{name: BYTES_MAX // 4})

    assert BYTES_MAX == MEMORY_BYTES_MAX
    with pytest.raises(PreloadError, match=f"the engine tells {name} of "):
        replace(engine(4), **{name: BYTES_MAX // 4 + 1})
