# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a connection, in words that say what to change.

gRPC tells of all addresses that it tried and of its own parts; that text is the cause of our error.
Source of the signs: gRPC 1.85 and its BoringSSL.
"""

from enum import StrEnum


class Trouble(StrEnum):
    """What keeps a call from the server. The names are stable."""

    NONE = ""
    NOBODY_LISTENS = "NOBODY_LISTENS"
    TOO_SLOW = "TOO_SLOW"
    NO_ROUTE = "NO_ROUTE"
    NO_SUCH_HOST = "NO_SUCH_HOST"
    CLOSED = "CLOSED"
    CLOSED_AT_ONCE = "CLOSED_AT_ONCE"
    NOT_GRPC = "NOT_GRPC"
    NOT_TLS = "NOT_TLS"
    CERTIFICATE_EXPIRED = "CERTIFICATE_EXPIRED"
    CERTIFICATE_TOO_NEW = "CERTIFICATE_TOO_NEW"
    CERTIFICATE_OF_NOBODY = "CERTIFICATE_OF_NOBODY"
    CERTIFICATE_OF_OTHERS = "CERTIFICATE_OF_OTHERS"
    CERTIFICATE_UNREADABLE = "CERTIFICATE_UNREADABLE"
    OTHER = "OTHER"


# The first sign that is found holds.
_SIGNS = (
    ("certificate has expired", Trouble.CERTIFICATE_EXPIRED),
    ("certificate is not yet valid", Trouble.CERTIFICATE_TOO_NEW),
    ("CERTIFICATE_VERIFY_FAILED", Trouble.CERTIFICATE_OF_NOBODY),
    ("not in peer certificate", Trouble.CERTIFICATE_OF_OTHERS),
    ("Hostname Verification Check failed", Trouble.CERTIFICATE_OF_OTHERS),
    ("Failed to create security handshaker", Trouble.CERTIFICATE_UNREADABLE),
    ("WRONG_VERSION_NUMBER", Trouble.NOT_TLS),
    ("Failed parsing HTTP/2", Trouble.NOT_GRPC),
    ("Domain name not found", Trouble.NO_SUCH_HOST),
    ("Misformatted domain name", Trouble.NO_SUCH_HOST),
    # With the address before it: not of a connection that was open.
    (": Socket closed", Trouble.CLOSED_AT_ONCE),
    ("Connection refused", Trouble.NOBODY_LISTENS),
    ("Deadline Exceeded", Trouble.TOO_SLOW),
    ("Timeout occurred", Trouble.TOO_SLOW),
    ("FD Shutdown", Trouble.TOO_SLOW),
    ("keepalive watchdog timeout", Trouble.TOO_SLOW),
    ("Network is unreachable", Trouble.NO_ROUTE),
    ("No route to host", Trouble.NO_ROUTE),
    ("reset by peer", Trouble.CLOSED),
    ("Socket closed", Trouble.CLOSED),
    ("GOAWAY", Trouble.CLOSED),
    ("RST_STREAM", Trouble.CLOSED),
    ("Stream removed", Trouble.CLOSED),
)
# Of calls that broke, whatever code they have, e.g. where a proxy restarts.
_BREAKS = ("RST_STREAM", "Stream removed")

WORDS = {
    Trouble.NOBODY_LISTENS: "nobody listens there",
    Trouble.TOO_SLOW: "it took too long",
    Trouble.NO_ROUTE: "no network leads there",
    Trouble.CLOSED: "it closed the connection",
    Trouble.NO_SUCH_HOST: "there is no such host; look for a typing error, or use its IP address",
    Trouble.CLOSED_AT_ONCE: "it closed the connection at once; it may ask for TLS, or for a "
    "certificate of yours: see ClientOptions.credentials",
    Trouble.NOT_GRPC: "it does not speak gRPC; it may be the port of a web page or of the metrics: "
    "name the one of orchestratord's `listen`",
    Trouble.NOT_TLS: "it does not speak TLS; leave ClientOptions.credentials out, or set "
    "tls.certificate there",
    Trouble.CERTIFICATE_EXPIRED: "its certificate has expired; renew it there",
    Trouble.CERTIFICATE_TOO_NEW: "its certificate is not valid yet; look at the clocks",
    Trouble.CERTIFICATE_OF_NOBODY: "its certificate is not from an authority that is trusted here; "
    "give the authority's to ClientOptions.credentials",
    Trouble.CERTIFICATE_OF_OTHERS: "its certificate is for another name; use one that is in it",
    Trouble.CERTIFICATE_UNREADABLE: "what was given to ClientOptions.credentials holds no "
    "certificate, or no key, in PEM form",
}
# Nothing is wrong with how it was called: it is away, for now or for good.
SILENCES = frozenset(
    (Trouble.NOBODY_LISTENS, Trouble.TOO_SLOW, Trouble.NO_ROUTE, Trouble.CLOSED, Trouble.OTHER)
)


def trouble_of(text: str) -> Trouble:
    """What gRPC's text means."""
    return next((trouble for sign, trouble in _SIGNS if sign in text), Trouble.OTHER)


def is_break(text: str) -> bool:
    """True for the text of a call that broke, whatever code it has."""
    return any(sign in text for sign in _BREAKS)


def words(trouble: Trouble, text: str) -> str:
    """What is wrong; for what has no words here the error of the system, which gRPC puts last."""
    return WORDS.get(trouble) or text.rpartition(": ")[2] or "it is not told why"


def sentence(trouble: Trouble, text: str, target: str) -> str:
    """What is wrong with the server at `target`, and what to change."""
    server = target or "the server"
    if trouble not in SILENCES:
        return f"{server}: {words(trouble, text)}"
    told = f"{server} does not answer: {words(trouble, text)}"
    if trouble is Trouble.CLOSED:
        return told
    return f"{told}; start orchestratord there, or name another server"
