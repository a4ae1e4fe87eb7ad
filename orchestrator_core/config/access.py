"""Settings of who may call, how calls are encrypted, and where tools may connect to."""

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from orchestrator_core.auth.tokens import HOST_ID_PATTERN, NAME_PATTERN
from orchestrator_core.config.table import Hidden, Live, Table
from orchestrator_core.core.outbound import Unreadable, read_pattern


class OutboundTable(Table):
    """What clients' tools may connect to. ORCH-3080, ORCH-3206."""

    enabled: Live[bool] = Field(
        default=False, description="The one switch: without it every connection is denied."
    )
    policy: Live[str] = Field(
        default="patterns",
        min_length=1,
        max_length=128,
        description="Who decides, if so: `patterns`, by the two lists, or an installed plug-in.",
    )
    allow: Live[tuple[str, ...]] = Field(
        default=(),
        max_length=1_024,
        strict=False,
        description="Hosts to connect to: HOST, `*.HOST` for all below it, `*` for all; over"
        " https, and http to this machine, unless SCHEME:// stands before it.",
    )
    deny: Live[tuple[str, ...]] = Field(
        default=(),
        max_length=1_024,
        strict=False,
        description="Hosts never to connect to, over any scheme unless one stands before it; goes"
        " before `allow`.",
    )


class TokenTable(Table):
    """One bearer token, which is itself stated nowhere. AUTH-1001."""

    role: Literal["client", "pool", "admin"] = Field(description="What the token is for.")
    sha256: Hidden[str] = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="Hash of the token; `orchestratord token` makes both.",
    )
    host_id: str = Field(
        default="",
        pattern=HOST_ID_PATTERN,
        description="Of a pool's token: the only host that it may register; then no other pool's "
        "token may. Empty: any that no token is bound to.",
    )
    expires: AwareDatetime | None = Field(
        default=None,
        description="When it ends, with its offset from UTC, e.g. 2027-01-31T00:00:00Z; unset: "
        "never.",
    )


class AuthTable(Table):
    """Bearer tokens. AUTH-1001..1008."""

    jobs_visible_to: Live[Literal["owner", "all"]] = Field(
        default="owner",
        description="Whose clients see, follow and cancel a job: only that which gave it, or every "
        "one; admins always.",
    )
    expiry_warning_days: Live[int] = Field(
        default=14,
        ge=0,
        le=365,
        description="So long before a token ends the log warns of it once a day; 0: never.",
    )
    tokens: Live[dict[Annotated[str, Field(pattern=NAME_PATTERN)], TokenTable]] = Field(
        default={},
        max_length=1_000,
        description="Tokens by the name of their owner, which is also the identity that limits "
        "hold for; without any, nobody is asked for one.",
    )


class TlsTable(Table):
    """The server's own certificate, and whom it asks for one. Changed files count at once."""

    certificate: str = Field(
        default="",
        max_length=4096,
        description="PEM file of the server's certificate and its chain; empty: no TLS. Relative "
        "to the configuration file.",
    )
    key: str = Field(
        default="", max_length=4096, description="PEM file of the certificate's key, unencrypted."
    )
    client_ca: str = Field(
        default="",
        max_length=4096,
        description="PEM file of the authorities that callers' certificates must come from; empty:"
        " callers need none.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Take tokens and prompts without TLS on addresses that others can reach.",
    )


def outbound_problems(outbound: OutboundTable) -> Iterator[str]:
    """What is wrong with the patterns of the outbound policy."""
    for name, texts in (("allow", outbound.allow), ("deny", outbound.deny)):
        for text in texts:
            pattern = read_pattern(text)
            if isinstance(pattern, Unreadable):
                yield f"outbound.{name}: {text!r} must {pattern.must}"


def loopback_bind(address: str) -> bool:
    """True for an address HOST:PORT that only this machine reaches. ORCH-3035, HME-002."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_problems(tls: TlsTable) -> Iterator[str]:
    """Keys of TLS that lack another one."""
    if bool(tls.certificate) != bool(tls.key):
        yield "tls.certificate and tls.key: set both, or neither"
    if tls.client_ca and not tls.certificate:
        yield "tls.client_ca: callers show certificates over TLS only: set tls.certificate, tls.key"


def token_problems(auth: AuthTable) -> Iterator[str]:
    """Tokens that two names share."""
    owners: dict[str, str] = {}
    for name, token in auth.tokens.items():
        other = owners.setdefault(token.sha256, name)
        if other != name:
            yield f"auth.tokens.{name}: has the same token as {other}: make one for each"
        if token.host_id and token.role != "pool":
            yield f'auth.tokens.{name}.host_id: is for tokens with role = "pool": leave it out'
