"""Bearer tokens: made here, kept as hashes, compared in constant time. AUTH-1001..1008.

A token is 32 random bytes, so one round of SHA-256 keeps it as safe as a slow hash would: nobody
guesses 256 bits, whatever a guess costs. Slow hashes and salt are for secrets that people choose.
Source: NIST SP 800-63B, 5.1.2.2: look-up secrets of 112 bits or more take a one-way function, only
shorter ones a salt and a key derivation.
"""

import datetime as dt
import enum
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

# Names the product to scanners that look for secrets in repositories.
PREFIX = "llorch_"
RANDOM_BYTES = 32
TOKEN_CHARS_MAX = 256
FINGERPRINT_CHARS = 6
NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
# As `hosts/registration.py` asks of hosts; empty for none.
HOST_ID_PATTERN = r"^[A-Za-z0-9._:-]{0,128}$"
NO_HOSTS: frozenset[str] = frozenset()
_SCHEME = "bearer"


class Role(enum.Enum):
    """What a token is for."""

    CLIENT = "client"
    POOL = "pool"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a token belongs to, and what it opens.

    `fingerprint` tells tokens apart in logs and reveals none. `sees_all`: jobs of others too.
    `host_id` is the only host that it may register, empty for any but `hosts_bound`, which are all
    that a token is bound to. `expires_s` is in seconds since 1970; None: never.
    """

    name: str
    role: Role
    fingerprint: str
    sees_all: bool = False
    host_id: str = ""
    hosts_bound: frozenset[str] = NO_HOSTS
    expires_s: float | None = None

    def expired(self, now_s: float) -> bool:
        """True when its time is over at an instant, in seconds since 1970."""
        return self.expires_s is not None and now_s >= self.expires_s

    @property
    def expires(self) -> str:
        """When it expires, for people; empty for never."""
        if self.expires_s is None:
            return ""
        return dt.datetime.fromtimestamp(self.expires_s, dt.UTC).isoformat(" ", "seconds")


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One configured token: the SHA-256 of its text, in lower-case hexadecimal.

    `host_id` and `expires_s` are as in `Identity`.
    """

    name: str
    role: Role
    sha256: str
    host_id: str = ""
    expires_s: float | None = None


def new_token() -> str:
    """A fresh token; visible ASCII."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def sha256_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def fingerprint(token: str) -> str:
    """What logs may say of a token: six digits of its hash. AUTH-1008."""
    return sha256_of(token)[:FINGERPRINT_CHARS]


class Tokens:
    """The tokens that a server takes, and what each opens. Never changes. O(tokens) per question.

    With `jobs_shared` every client sees the jobs of all. All hashes are compared, whichever it is.
    AUTH-1004, AUTH-1005.
    """

    def __init__(self, entries: Iterable[TokenEntry], *, jobs_shared: bool = False) -> None:
        given = tuple(entries)
        bound = frozenset(entry.host_id for entry in given if entry.host_id)
        self._entries = tuple(
            (
                bytes.fromhex(entry.sha256),
                Identity(
                    entry.name,
                    entry.role,
                    entry.sha256[:FINGERPRINT_CHARS],
                    sees_all=jobs_shared or entry.role is Role.ADMIN,
                    host_id=entry.host_id,
                    hosts_bound=bound,
                    expires_s=entry.expires_s,
                ),
            )
            for entry in given
        )

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def identities(self) -> tuple[Identity, ...]:
        """Whom the tokens belong to."""
        return tuple(identity for _, identity in self._entries)

    def find(self, token: str) -> Identity | None:
        """Whose token it is, expired or not; None for nobody's.

        Takes as long for every token of one length.
        """
        presented = bytes.fromhex(sha256_of(token))
        found = None
        for digest, identity in self._entries:
            if hmac.compare_digest(digest, presented):
                found = identity
        return found


def bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The token that a call presents; None where it presents none, several, or too long a one.

    Source: RFC 6750, 2.1; the scheme is case-insensitive by RFC 9110, 11.1.
    """
    given = [value for key, value in metadata if key == "authorization"]
    if len(given) != 1 or not isinstance(given[0], str):
        return None
    scheme, _, token = given[0].partition(" ")
    token = token.strip()
    if scheme.lower() != _SCHEME or not 0 < len(token) <= TOKEN_CHARS_MAX:
        return None
    return token
