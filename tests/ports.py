"""Free ports, for servers that have to be told theirs."""

import socket


def free_ports(count: int) -> list[int]:
    """So many ports, on which nobody listens right now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def free_port() -> int:
    """A port on which nobody listens right now."""
    return free_ports(1)[0]
