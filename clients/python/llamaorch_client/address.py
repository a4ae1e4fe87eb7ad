# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a server's address, before a connection is tried. Pure.

gRPC would take most mistakes for names to look up, or add port 443, and then say that nobody
answers.
"""

import ipaddress
import string
from collections.abc import Sequence

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7070
PORT_MAX = 65_535
_IP = {"ipv4": ipaddress.IPv4Address, "ipv6": ipaddress.IPv6Address}
# Of names, of IPv4, and of IPv6 with its brackets and its zone.
_HOST = frozenset(string.ascii_lowercase + string.digits + ".-_:[]%")


def checked_address(address: str) -> str:
    """Returns an address that can be dialled: HOST:PORT, or a target of one of gRPC's schemes.

    Raises:
        ValueError: saying what is wrong with it, and what to write instead.
    """
    scheme, _, rest = address.partition(":")
    if scheme in _IP and rest:
        problem, better = _ip_addresses(scheme, rest.split(","))
    elif scheme in ("unix", "unix-abstract", "dns") and rest:
        problem, better = "", ""
    else:
        problem, better = _addresses(address.split(","))
    if problem:
        raise ValueError(f"{address!r} is no server address: {problem}; write {better}")
    return address


def _addresses(parts: Sequence[str]) -> tuple[str, str]:
    """What is wrong with the first that is none; several are none together."""
    for part in parts:
        problem, better = _problem(part)
        if problem:
            return problem, better
    if len(parts) == 1:
        return "", ""
    better = f"ipv4:{','.join(parts)}" if not any(_no_ip("ipv4", part) for part in parts) else ""
    return "several are IP addresses behind a scheme", better or parts[0]


def _ip_addresses(scheme: str, parts: Sequence[str]) -> tuple[str, str]:
    wrong = next((part for part in parts if _no_ip(scheme, part)), None)
    if wrong is None:
        return "", ""
    example = "ipv4:127.0.0.1" if scheme == "ipv4" else "ipv6:[::1]"
    return f"{wrong!r} is no IP address with a port", f"{example}:{DEFAULT_PORT}"


def _no_ip(scheme: str, address: str) -> bool:
    host, port = _split(address)
    inner = host[1:-1] if scheme == "ipv6" and host.startswith("[") else host
    try:
        _IP[scheme](inner.partition("%")[0])
    except ValueError:
        return True
    return not _is_port(port)


def _problem(address: str) -> tuple[str, str]:
    """What is wrong with one address, and a better one; empty texts for a good one."""
    if "://" in address:
        return _web_address(address)
    host, port = _split(address)
    mistakes = (
        ("/" in address, "it has a path", _joined(host, port.partition("/")[0])),
        (not _HOST.issuperset(host.lower()), "no host is spelt like that", _joined("", port)),
        (not host, "it has no host", _joined("", port)),
        (
            ":" in host and not host.startswith("["),
            "an IPv6 address stands in brackets",
            _joined(f"[{address}]", ""),
        ),
        (not port, "it has no port", _joined(host, "")),
        (not _is_port(port), f"a port is a number from 1 to {PORT_MAX}", _joined(host, "")),
    )
    return next(((problem, better) for wrong, problem, better in mistakes if wrong), ("", ""))


def _web_address(address: str) -> tuple[str, str]:
    scheme, _, rest = address.partition("://")
    if scheme in ("dns", "unix", "xds"):
        return "", ""
    tls = " with --tls" if scheme == "https" else ""
    host, port = _split(rest.partition("/")[0])
    return f"it is a web address ({scheme}://)", _joined(host, port) + tls


def _split(address: str) -> tuple[str, str]:
    """Host and port; what stands behind the brackets of an IPv6 address, or the last colon."""
    if address.startswith("["):
        host, bracket, rest = address.partition("]")
        return host + bracket, rest.removeprefix(":")
    host, colon, port = address.rpartition(":")
    return (host, port) if colon else (address, "")


def _joined(host: str, port: str) -> str:
    good = port if _is_port(port) else str(DEFAULT_PORT)
    return f"{host or DEFAULT_HOST}:{good}"


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= PORT_MAX
