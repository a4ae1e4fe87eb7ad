"""Tokens and TLS: who may look at this host, and how it proves itself to the orchestrator.

AUTH-1001, AUTH-1002, AUTH-1007, ORCH-3035, HME-002.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, SecretStr

from pool_managerd.config.table import Hidden, Live, Table

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
PLAINTEXT = "set {tls}, or {table}.allow_plaintext = true where the network is trusted"


class TokenTable(Table):
    """A token that may look at this host. AUTH-1001."""

    role: Literal["client", "pool", "admin"] = Field(
        description="As at the orchestrator; `pool` may not look at hosts."
    )
    sha256: Hidden[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        description="Hash of the token; `orchestratord token` makes both."
    )
    expires: AwareDatetime | None = Field(
        default=None,
        description="When it ends, with its offset from UTC, e.g. 2027-01-31T00:00:00Z; unset: "
        "never.",
    )


class AuthTable(Table):
    """Who may look at this host."""

    tokens: Live[dict[Annotated[str, Field(pattern=NAME_PATTERN)], TokenTable]] = Field(
        default={}, max_length=1_000, description="Tokens by name; without any, nobody is asked."
    )


class ServerTlsTable(Table):
    """The certificate of the inspection. Changed files count at once."""

    certificate: str = Field(
        default="", max_length=4096, description="PEM file of certificate and chain; empty: no TLS."
    )
    key: str = Field(default="", max_length=4096, description="PEM file of its key, unencrypted.")
    client_ca: str = Field(
        default="",
        max_length=4096,
        description="PEM file of the authorities of callers; empty: callers need no certificate.",
    )
    allow_plaintext: bool = Field(
        default=False, description="Answer without TLS on addresses that others can reach."
    )


class LinkTlsTable(Table):
    """How the orchestrator is reached and recognised. Read anew with each connection."""

    enabled: Live[bool] = Field(
        default=False, description="Use TLS; so does a `ca` or `certificate`."
    )
    ca: Live[str] = Field(
        default="",
        max_length=4096,
        description="PEM file of the authorities that the orchestrator's certificate must come "
        "from; empty: the system's.",
    )
    certificate: Live[str] = Field(
        default="", max_length=4096, description="PEM file with which this host shows who it is."
    )
    key: Live[str] = Field(default="", max_length=4096, description="PEM file of its key.")
    server_name: Live[str] = Field(
        default="",
        max_length=253,
        description="Name in the orchestrator's certificate, where it is not that of the address.",
    )
    allow_plaintext: Live[bool] = Field(
        default=False, description="Send token and output to other machines without TLS."
    )

    @property
    def used(self) -> bool:
        """True when connections use TLS."""
        return self.enabled or bool(self.ca or self.certificate)


class LinkAccess(Table):
    """The part of `[link]` that says how this host proves itself."""

    token_env: Live[str] = Field(
        default="", max_length=128, description="Environment variable with the host's token."
    )
    token_file: Live[str] = Field(
        default="",
        max_length=4096,
        description="File with the host's token, read anew with each connection.",
    )
    tls: LinkTlsTable = Field(default=LinkTlsTable(), description="TLS to the orchestrator.")
    token: Live[SecretStr] = Field(default=SecretStr(""), exclude=True, description="(environment)")


def loopback(address: str) -> bool:
    """True for an address HOST:PORT that does not leave this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen_problems(
    listen: str, metrics_listen: str, auth: AuthTable, tls: ServerTlsTable
) -> Iterator[str]:
    """What ports that others can reach lack, and what does not go together. AUTH-1002."""
    reached = f"listen: {listen} can be reached from other machines"
    if not loopback(listen) and not auth.tokens:
        yield (
            f"{reached}, and nobody would be asked for a token: make one with `orchestratord "
            "token --role admin --name NAME` and add it to auth.tokens, or listen on 127.0.0.1"
        )
    if not loopback(listen) and not tls.certificate and not tls.allow_plaintext:
        remedy = PLAINTEXT.format(tls="tls.certificate and tls.key", table="tls")
        yield f"{reached}, and tokens would pass in the clear: {remedy}"
    if metrics_listen and not loopback(metrics_listen):
        yield (
            f"metrics_listen: {metrics_listen} can be reached from other machines, and this port "
            "asks nobody for a token: listen on 127.0.0.1 and use an SSH tunnel"
        )
    if bool(tls.certificate) != bool(tls.key):
        yield "tls.certificate and tls.key: set both, or neither"
    if tls.client_ca and not tls.certificate:
        yield "tls.client_ca: callers show certificates over TLS only: set tls.certificate, tls.key"


def link_problems(orchestrator: str, link: LinkAccess) -> Iterator[str]:
    """Why this host may not dial as it is told. AUTH-1002, AUTH-1007."""
    tls = link.tls
    if not loopback(orchestrator) and not tls.used and not tls.allow_plaintext:
        remedy = PLAINTEXT.format(tls="link.tls.ca or link.tls.enabled", table="link.tls")
        yield (
            f"orchestrator: {orchestrator} is another machine, and token, prompts and output would "
            f"pass in the clear: {remedy}"
        )
    if bool(tls.certificate) != bool(tls.key):
        yield "link.tls.certificate and link.tls.key: set both, or neither"
    if link.token_env and link.token_file:
        yield "link.token_env and link.token_file: set one"


def resolved_access(
    link: LinkAccess, base: Path, env: Mapping[str, str], problems: list[str]
) -> dict[str, object]:
    """What changes once the folder of the configuration and the environment are known."""
    token = env.get(link.token_env, "").strip() if link.token_env else ""
    if link.token_env and not token:
        problems.append(f"link.token_env: the environment variable {link.token_env} is not set")
    if not (token.isascii() and token.isprintable()):
        problems.append(f"link.token_env: the variable {link.token_env} holds no token")
    file = str(base / link.token_file) if link.token_file else ""
    tls = link.tls.model_copy(update=resolved_files(link.tls, base))
    return {"token": SecretStr(token), "token_file": file, "tls": tls}


def trace_problems(link: LinkAccess, auth: AuthTable, env: Mapping[str, str]) -> Iterator[str]:
    """Why gRPC may not trace: it prints every header, and in them tokens. AUTH-1008."""
    if env.get("GRPC_TRACE") and (auth.tokens or link.token_env or link.token_file):
        yield (
            "GRPC_TRACE: with this variable gRPC writes tokens to the log: unset it, or look for "
            "what you look for without tokens"
        )


def resolved_files(table: Table, base: Path) -> dict[str, object]:
    """The paths of a table of TLS, which begin at the folder of the configuration."""
    names = ("ca", "certificate", "key", "client_ca")
    return {name: str(base / path) for name in names if (path := getattr(table, name, ""))}
