"""Work that waits to be done with more of its kind: all of it, in order, bounded."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import pytest

from faults.simulation.virtual_time import VirtualLoop
from orchestrator_core.telemetry.gathering import GATHER_S, PIECES_MAX, Gathered

WAIT_S = 10.0


class Done:
    """What was handed over, and how many pieces at a time."""

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.sizes: list[int] = []

    def __call__(self, pieces: list[int]) -> None:
        """Takes them."""
        self.pieces += pieces
        self.sizes.append(len(pieces))


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """Virtual time, a while after its beginning."""
    running = VirtualLoop()
    running.run_until_complete(asyncio.sleep(10))
    yield running
    running.close()


def test_without_a_loop_each_piece_is_handed_over_at_once() -> None:
    """Nobody would come back for it."""
    done = Done()
    gathered = Gathered(done)

    for number in range(3):
        gathered.put(number)

    assert (done.pieces, done.sizes) == ([0, 1, 2], [1, 1, 1])


def test_pieces_of_one_moment_are_handed_over_together(loop: VirtualLoop) -> None:
    """In order, and before anything that is begun after them."""
    done = Done()
    gathered = Gathered(done)

    async def burst() -> None:
        for number in range(3):
            gathered.put(number)
        assert done.pieces == []
        await asyncio.sleep(0)

    loop.run_until_complete(burst())
    assert (done.pieces, done.sizes) == ([0, 1, 2], [3])


def test_in_a_burst_they_are_handed_over_now_and_then(loop: VirtualLoop) -> None:
    """Each waits for `GATHER_S` at most, and the hand-overs lie that far apart."""
    done = Done()
    gathered = Gathered(done)
    came_s: list[float] = []
    handed_s: list[float] = []

    async def burst() -> None:
        for number in range(200):
            gathered.put(number)
            came_s.append(loop.time())
            await asyncio.sleep(GATHER_S / 20)
            handed_s.extend([loop.time()] * (len(done.pieces) - len(handed_s)))
        await asyncio.sleep(2 * GATHER_S)
        handed_s.extend([loop.time()] * (len(done.pieces) - len(handed_s)))

    loop.run_until_complete(burst())
    turns = sorted(set(handed_s))
    assert done.pieces == [*range(200)]
    assert len(done.sizes) <= 12
    assert all(after - before >= 0.9 * GATHER_S for before, after in pairwise(turns[:-1]))
    waits = [handed - came for came, handed in zip(came_s, handed_s, strict=True)][:-20]
    assert max(waits) <= 1.1 * GATHER_S


def test_no_more_than_the_bound_wait(loop: VirtualLoop) -> None:
    """A step that brings thousands keeps no more than that many."""
    done = Done()
    gathered = Gathered(done)

    async def burst() -> None:
        for number in range(10 * PIECES_MAX):
            gathered.put(number)
            assert number + 1 - len(done.pieces) < PIECES_MAX

    loop.run_until_complete(burst())
    gathered.flush()
    assert done.pieces == [*range(10 * PIECES_MAX)]
    assert max(done.sizes) == PIECES_MAX


class Meeting(deque[int]):
    """A queue at which two threads that bring something meet, if they can."""

    def __init__(self) -> None:
        super().__init__()
        self._barrier = threading.Barrier(2)

    def append(self, piece: int) -> None:
        """Waits for another one to come, but not for long."""
        super().append(piece)
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(0.2)


def test_what_two_threads_bring_at_once_is_handed_over() -> None:
    """Each may see that of the other, and leave it all to it."""
    done = Done()
    gathered = Gathered(done)
    gathered._waiting = Meeting()
    threads = [threading.Thread(target=gathered.put, args=(number,)) for number in range(2)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert sorted(done.pieces) == [0, 1]
