"""How long a host is waited for that is asked for output again. LO-301."""

from collections.abc import Callable

import pytest

from faults.simulation.virtual_time import VirtualLoop
from orchestrator_core.core.job import Attempt
from orchestrator_core.hosts.rereading import Wanted, read_again
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.relay.retelling import text_of
from tests.unit.orchestrator_core.relay.logs import frames

GRACE_S = 8.0
WORDS = [["some "], ["words"]]
ATTEMPT = Attempt("j", 1, "p", "p#1", "h", sent_ms=0)


class Hosts:
    """One host, which is asked on a link. `answers` is called with each."""

    def __init__(self, answers: Callable[[str], None]) -> None:
        self.links = {"h": "first"}
        self.asked: list[str] = []
        self._answers = answers

    def send_again(self, host_id: str, _key: tuple[str, int], first_index: int) -> int:
        """See `Hosts.send_again`."""
        if first_index == 0:
            self.asked.append(self.links[host_id])
            self._answers(self.links[host_id])
        return 1

    def bind_again(self, _host_id: str, _key: tuple[str, int]) -> None:
        """See `Hosts.bind_again`."""


def _read(connects_s: float | None) -> tuple[list[str], str, float]:
    """On which links a host is asked that answers on its second alone, the text, and the time."""
    relay = Relay(RelayLimits())
    log = relay.log("j")
    log.begin_attempt(1)
    for frame in frames(WORDS):
        log.append_text(frame)
    log.evict_all()
    loop = VirtualLoop()

    def answer(link: str) -> None:
        if link == "second":
            for frame in frames(WORDS):
                loop.call_soon(relay.sides.offer, "j", frame, 1)

    hosts = Hosts(answer)

    async def read() -> list[Item]:
        if connects_s is not None:
            loop.call_later(connects_s, hosts.links.update, {"h": "second"})
        wanted = Wanted(0, closed=True)
        return await read_again(relay, hosts, ATTEMPT, wanted, GRACE_S)  # type: ignore[arg-type] # all that is asked of it

    try:
        items = loop.run_until_complete(read())
        return hosts.asked, b"".join(text_of(item.entry) for item in items).decode(), loop.time()
    finally:
        loop.clean_up()
        loop.close()


def test_a_host_that_does_not_answer_is_given_up() -> None:
    """After as long as for one that runs attempts, and some seconds more."""
    asked, text, took_s = _read(None)

    assert (asked, text) == (["first", "first"], "")
    assert GRACE_S < took_s <= GRACE_S + 5


@pytest.mark.parametrize("connects_s", [4.0, 9.0])
def test_a_host_that_connects_anew_meanwhile_is_asked_there(connects_s: float) -> None:
    """What it was asked on the link before is lost; also where the time was almost over."""
    asked, text, _ = _read(connects_s)

    assert asked[-1] == "second"
    assert text == "some words"
