"""What an engine took replaces what was expected of it. ORCH-3201."""

from dataclasses import replace
from pathlib import Path

import pytest

from pool_managerd.core.fit import HOST
from pool_managerd.core.gguf_fit import GPU_CONTEXT_BYTES, PROCESS_BYTES
from tests.unit.pool_managerd.preflight.box import GIB, WAIT_MS, Box, gpu, info, served, table


async def test_what_the_engine_took_replaces_the_estimate(model: Path) -> None:
    """ORCH-3039: its own report, plus what no engine reports of the driver's context."""
    box = Box(devices=(gpu("a", 12 * GIB), gpu("b", 12 * GIB)))
    preflight, pool = box.preflight(), table(model)
    await preflight.memory(pool)

    await preflight.loaded(pool, info(7, 100, 200))

    assert box.ledger.claimed("GPU-a") == 100 + GPU_CONTEXT_BYTES
    assert box.ledger.claimed("GPU-b") == 200 + GPU_CONTEXT_BYTES
    assert box.ledger.claimed(HOST) == 7 + PROCESS_BYTES
    assert not box.ledger.loading_beside("other", frozenset({"GPU-a"}))
    preflight.gone("p")
    preflight.gone("p")
    assert box.ledger.claimed("GPU-a") == 0


async def test_an_engine_that_says_nothing_took_what_became_less_free(model: Path) -> None:
    """The driver's figures before and after; the host's belong to many programs."""
    box = Box()
    preflight, pool = box.preflight(), table(model)
    await preflight.memory(pool)
    host_before = box.ledger.claimed(HOST)
    box.devices = (gpu("a", 9 * GIB),)
    box.host = replace(box.host, free=GIB)

    await preflight.loaded(pool, info())

    assert box.ledger.claimed("GPU-a") == 3 * GIB
    assert box.ledger.claimed(HOST) == host_before


async def test_what_was_read_before_the_model_was_loaded_is_not_believed(model: Path) -> None:
    """The difference is that of a reading that began after the start had ended."""
    box = Box(elapsed_ms=5_000, read_at_ms=4_900)
    preflight, pool = box.preflight(), table(model)
    await preflight.memory(pool)
    box.devices = (gpu("a", 11 * GIB),)

    def read(box: Box, number: int) -> None:
        if number == 2:
            box.devices, box.read_at_ms = (gpu("a", 9 * GIB),), box.elapsed_ms - 1

    box.on_look = read
    await preflight.loaded(pool, info())

    assert box.ledger.claimed("GPU-a") == 3 * GIB
    assert box.looks == 2


async def test_without_a_reading_in_time_the_estimate_stands(model: Path) -> None:
    """A driver that hangs does not keep the pool from serving, nor make its claim nonsense."""
    box = Box(elapsed_ms=5_000, read_at_ms=4_900)
    preflight, pool = box.preflight(), table(model)
    await preflight.memory(pool)
    expected = box.ledger.claimed("GPU-a")
    box.devices = (gpu("a", 11 * GIB),)

    await preflight.loaded(pool, info())

    assert box.ledger.claimed("GPU-a") == expected
    assert box.elapsed_ms == 5_000 + WAIT_MS
    assert not box.ledger.loading_beside("other", frozenset({"GPU-a"}))


@pytest.mark.parametrize("disturbed", ["began_before", "began_after", "ended"])
async def test_what_two_engines_changed_at_once_is_nobodys(model: Path, disturbed: str) -> None:
    """The difference of a device on which another engine came or went meanwhile says nothing."""
    box = Box()
    preflight, pool, other = box.preflight(), table(model), table(model, "q")
    if disturbed != "began_after":
        await preflight.memory(other)
    if disturbed == "ended":
        await preflight.loaded(other, info(7, 100))
    await preflight.memory(pool)
    if disturbed == "began_after":
        await preflight.memory(other)
    if disturbed == "ended":
        preflight.gone("q")
    expected = box.ledger.entries("p")["GPU-a"].estimated
    box.devices = (gpu("a", 2 * GIB),)

    await preflight.loaded(pool, info())

    assert box.ledger.entries("p")["GPU-a"].taken is None
    assert expected == box.ledger.entries("p")["GPU-a"].estimated


async def test_what_an_ended_engine_held_is_not_taken_for_room_that_was_lost(model: Path) -> None:
    """An engine that does not tell what it takes begins after a reading without the former one."""
    box = Box()
    preflight = box.preflight()
    pool = served(model, gpu_layers=-1, ctx_per_slot=1_024)
    await preflight.memory(pool)
    preflight.gone("p")
    box.devices, box.read_at_ms = (gpu("a", 8 * GIB),), -1

    def read(box: Box, _number: int) -> None:
        box.devices, box.read_at_ms = (gpu("a", 12 * GIB),), box.elapsed_ms - 1

    box.on_look = read
    await preflight.memory(pool)
    box.devices, box.read_at_ms = (gpu("a", 7 * GIB),), box.elapsed_ms + 1
    await preflight.loaded(pool, info())

    assert box.ledger.claimed("GPU-a") == 5 * GIB
