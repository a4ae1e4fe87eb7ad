"""What network and disk do to everybody: they are slow, silent, broken, full, and mended."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from faults.simulation.disk import Condition, Disk
from faults.simulation.network import Connection, Network

_T = TypeVar("_T")
_OF_HOSTS = 0.7
_GOOD_DISK = Condition(write_ms=1.0)

Later = Callable[[int, Callable[[], None]], None]
"""Calls something after so many milliseconds, or as soon as faults are healed."""


class Weather:
    """Each trouble is over after a time, and all of it with `clear_up`. It begins fair."""

    def __init__(self, network: Network, disk: Disk, later: Later, chance: random.Random) -> None:
        self._network = network
        self._disk = disk
        self._later = later
        self._chance = chance
        self._mend_disk()

    def clear_up(self) -> None:
        """Mends what can be mended."""
        self._mend_disk()
        self._mend_network()
        self._network.refusing.clear()

    def disk(self, condition: Condition, for_ms: int) -> None:
        """Changes the disk for a time."""
        self._disk.condition = condition
        self._later(for_ms, self._mend_disk)

    def _mend_disk(self) -> None:
        self._disk.condition = _GOOD_DISK

    def connection(self, chosen: float) -> Connection | None:
        """One of the open connections."""
        there = [connection for connection in self._network.connections if connection.open]
        return pick(there, chosen) if there else None

    def stall(self, connection: Connection, *, up: bool, down: bool, for_ms: int) -> None:
        """Lets a connection go silent for a time."""
        for lane, chosen in ((connection.up, up), (connection.down, down)):
            if chosen:
                lane.stall()
                self._later(for_ms, lane.flow)

    def choke(self, chosen: float, *, up: bool, for_ms: int) -> None:
        """Holds one call up, in one direction, while others pass: often one to a host."""
        there = [call for each in self._network.connections for call in each.server_calls]
        hosts = [call for call in there if call.method.endswith("/Dispatch")]
        if not hosts:
            return
        call = pick(hosts if self._chance.random() < _OF_HOSTS else there, chosen)
        lane = call.connection.up if up else call.connection.down
        lane.choke(call)
        self._later(for_ms, lambda: lane.clear(call))

    def refuse(self, name: str, for_ms: int) -> None:
        """Lets one process not connect for a time."""
        self._network.refusing.add(name)
        self._later(for_ms, lambda: self._network.refusing.discard(name))

    def slow_network(self, factor: float, for_ms: int) -> None:
        """Lets every message take longer for a time."""
        self._network.slow = factor
        self._later(for_ms, self._mend_network)

    def _mend_network(self) -> None:
        self._network.slow = 1.0


def pick(items: Sequence[_T], chosen: float) -> _T:
    """The item at a share in [0, 1) of a list."""
    return items[int(chosen * len(items))]
