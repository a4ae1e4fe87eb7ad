"""Addresses that cannot be listened on: both services say which setting to change, and how."""

import errno
import socket
from types import ModuleType

import pytest

from orchestrator_core import binding as orchestrators
from pool_managerd import binding as pool_managers


@pytest.fixture(params=[orchestrators, pool_managers], ids=["orchestrator", "pool_managerd"])
def binding(request: pytest.FixtureRequest) -> ModuleType:
    """Of one service."""
    module: ModuleType = request.param
    return module


def test_a_port_that_is_taken_is_told(binding: ModuleType) -> None:
    """With the setting and the port; a free one is nothing to tell of."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        found = binding.unbindable(listen)

    assert binding.refusal("listen", listen, found) == (
        f"listen: cannot listen on {listen}: Address already in use: set another port, or end what "
        "listens there"
    )
    assert binding.unbindable(listen) is None
    assert binding.unbindable("127.0.0.1:0") is None


def test_an_address_of_another_machine_is_told(binding: ModuleType) -> None:
    """192.0.2.0/24 is nobody's (RFC 5737)."""
    found = binding.unbindable("192.0.2.7:0")

    told = binding.refusal("listen", "192.0.2.7:0", found)

    assert told.endswith(": set an address that this machine has")


@pytest.mark.parametrize("step", ["__init__", "bind"])
def test_what_cannot_be_told_is_left_to_the_server(
    binding: ModuleType, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a family of addresses that this machine does not have, where gRPC takes another."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    monkeypatch.setattr(socket, "socket", type("NoSuchFamily", (socket.socket,), {step: refuse}))

    assert binding.unbindable("127.0.0.1:0") is None


def test_a_name_that_no_host_can_have_is_told(binding: ModuleType) -> None:
    """Python finds that before any lookup, and calls it an error of the encoding."""
    found = binding.unbindable("a..b:7070")

    assert binding.refusal("listen", "a..b:7070", found) == (
        "listen: cannot listen on a..b:7070: no host can have that name: set another"
    )


def test_words_of_a_library_give_way_to_those_of_the_system(binding: ModuleType) -> None:
    """Those of asyncio are long, and name the address once more."""
    long = OSError(errno.EACCES, "error while attempting to bind on address ('127.0.0.1', 80)")

    assert binding.refusal("metrics_listen", "127.0.0.1:80", long).startswith(
        "metrics_listen: cannot listen on 127.0.0.1:80: Permission denied: set a port above 1023"
    )
