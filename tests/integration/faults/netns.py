"""Two hosts with a switch between them, as network namespaces: a cut that nobody is told of.

Both have loopback addresses, as the services listen on nothing else yet; `route_localnet` lets them
travel.
"""

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

ADDRESSES = {"a": "127.88.0.1", "b": "127.88.0.2"}


@dataclass(frozen=True, slots=True)
class Network:
    """Namespaces `a` and `b`, and the switch `m` that connects them."""

    name: str

    def command(self, side: str) -> tuple[str, ...]:
        """What to put before a command that shall run on a side."""
        return ("ip", "netns", "exec", f"{self.name}-{side}")

    def cut(self) -> None:
        """From now on packets vanish; no end of a connection is told."""
        _ip("-n", f"{self.name}-m", "link", "set", "pb", "down")

    def heal(self) -> None:
        """Packets travel again."""
        _ip("-n", f"{self.name}-m", "link", "set", "pb", "up")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network of its own, or a skip that says why there is none."""
    if shutil.which("ip") is None:
        pytest.skip("no ip command")
    made = Network(f"llo-{uuid.uuid4().hex[:6]}")
    try:
        try:
            _make(made.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield made
    finally:
        for side in ("a", "b", "m"):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", f"{made.name}-{side}")


def _make(name: str) -> None:
    switch = f"{name}-m"
    for side in ("a", "b", "m"):
        _ip("netns", "add", f"{name}-{side}")
    _ip("-n", switch, "link", "add", "br0", "type", "bridge")
    _ip("-n", switch, "link", "set", "br0", "up")
    for side, address in ADDRESSES.items():
        space = f"{name}-{side}"
        _ip(
            "link", "add", "e0", "netns", space, "type", "veth", "peer", f"p{side}", "netns", switch
        )
        _ip("-n", switch, "link", "set", f"p{side}", "master", "br0", "up")
        _ip("netns", "exec", space, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "e0")
        _ip("-n", space, "link", "set", "e0", "up")
        # Else everything below 127 stays at home; 127.0.0.1 has a route of its own.
        _ip("-n", space, "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)  # noqa: S607
