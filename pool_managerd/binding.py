"""Why an address cannot be listened on, in a sentence that names the setting and what to do."""

import contextlib
import errno
import os
import socket

_ADVICE = {
    errno.EADDRINUSE: "set another port, or end what listens there",
    errno.EACCES: "set a port above 1023, or give the service the right to take lower ones",
    errno.EADDRNOTAVAIL: "set an address that this machine has",
}


def refusal(key: str, listen: str, error: OSError) -> str:
    """What to tell of an address that could not be bound."""
    number = error.errno or 0
    # Those of asyncio say more than the system's. Lookups have numbers below 0.
    why = os.strerror(number) if number > 0 else error.strerror or str(error)
    return f"{key}: cannot listen on {listen}: {why}: {_ADVICE.get(number, 'set another')}"


def unbindable(listen: str) -> OSError | None:
    """Why no socket can be bound to HOST:PORT; None when one can, or that cannot be told.

    gRPC gives no reason. The port is taken for a moment and let go; names are looked up.
    """
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        return error
    except UnicodeError:
        return OSError("no host can have that name")
    last: OSError | None = None
    for family, kind, protocol, _, address in found:
        try:
            # Even to make one fails where the system lacks the family, as without IPv6.
            with contextlib.closing(socket.socket(family, kind, protocol)) as probe:
                # As gRPC does: what a former process left in TIME_WAIT is no obstacle.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            last = error
        else:
            return None
    return last if last is not None and last.errno in _ADVICE else None
