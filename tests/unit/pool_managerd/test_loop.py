"""A loop that is held looks at no socket, and does everything else on time."""

import asyncio
import socket

from pool_managerd.loop import PatientLoop, holder

HELD_S = 0.2


async def seen_on(loop: asyncio.AbstractEventLoop, held_s: float) -> dict[str, float]:
    """When a byte that is there, a timer and a callback were seen, in seconds of the hold."""
    seen: dict[str, float] = {}
    began_s = loop.time()
    byte = asyncio.Event()

    def note(what: str) -> None:
        seen.setdefault(what, loop.time() - began_s)

    def on_byte() -> None:
        note("byte")
        byte.set()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.add_reader(ours, on_byte)
        theirs.send(b"1")
        loop.call_later(HELD_S / 4, note, "timer")
        holder()(began_s + held_s)
        loop.call_soon(note, "callback")
        await byte.wait()
        loop.remove_reader(ours)
    return seen


def test_a_held_loop_looks_at_its_sockets_when_the_hold_is_over() -> None:
    """Timers and callbacks do not wait for that."""
    with asyncio.Runner(loop_factory=PatientLoop) as runner:
        seen = runner.run(seen_on(runner.get_loop(), HELD_S))

    assert list(seen) == ["callback", "timer", "byte"]
    assert seen["byte"] >= HELD_S - 0.001


def test_a_loop_that_is_not_held_looks_at_once() -> None:
    """What is there comes before a later timer."""
    with asyncio.Runner(loop_factory=PatientLoop) as runner:
        seen = runner.run(seen_on(runner.get_loop(), 0.0))

    assert list(seen).index("byte") <= 1


async def test_a_loop_of_another_kind_cannot_be_held() -> None:
    """Holding it has no effect."""
    seen = await seen_on(asyncio.get_running_loop(), HELD_S)

    assert list(seen).index("byte") <= 1
