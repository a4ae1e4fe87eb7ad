"""Orders to stop an attempt wait for the journal, but not for long."""

import asyncio

import pytest

from orchestrator_core import cancels
from orchestrator_core.cancels import HeldCancels
from orchestrator_core.core.effects import SendCancel

WAIT_S = 20.0
ORDER, OTHER = SendCancel("h", "a", 1), SendCancel("h", "b", 1)


async def test_what_is_durable_in_time_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing behind; a repeated order holds its first place."""
    monkeypatch.setattr(cancels, "HOLD_S", 3_600.0)
    sent: list[SendCancel] = []
    held = HeldCancels(sent.append, lambda _: True)

    held.hold(ORDER)
    held.hold(ORDER)
    waiting, early = len(held), list(sent)
    held.durable(ORDER)

    assert (waiting, early, sent, len(held)) == (1, [], [ORDER], 0)


async def test_a_journal_that_does_not_answer_holds_back_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only those that may be sent unwritten; the others wait on."""
    monkeypatch.setattr(cancels, "HOLD_S", 0.001)
    sent: asyncio.Queue[SendCancel] = asyncio.Queue()
    held = HeldCancels(sent.put_nowait, lambda order: order is ORDER)

    held.hold(OTHER)
    held.hold(ORDER)
    first = await asyncio.wait_for(sent.get(), WAIT_S)
    left = len(held)
    held.durable(OTHER)

    assert (first, left) == (ORDER, 0)
    assert sent.get_nowait() is OTHER


async def test_nothing_is_sent_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal may belong to somebody else by then."""
    monkeypatch.setattr(cancels, "HOLD_S", 0.0)
    sent: list[SendCancel] = []
    held = HeldCancels(sent.append, lambda _: True)

    held.hold(ORDER)
    held.close()
    await asyncio.sleep(0.002)

    assert (sent, len(held)) == ([], 0)
