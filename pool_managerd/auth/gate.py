"""Asks whoever looks at this host for a token, before anything of the call is read.

AUTH-1001, AUTH-1003, AUTH-1005. Tokens are 32 random bytes, so one round of SHA-256 keeps them.
Source: NIST SP 800-63B, 5.1.2.2.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from pool_managerd.clock import Clock
from pool_managerd.config.security import TokenTable
from pool_managerd.telemetry import log

Next = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]

HEALTH = "/grpc.health.v1.Health/"
# Hosts prove themselves to the orchestrator with a role that reads nothing elsewhere.
ROLES = frozenset({"client", "admin"})
TOKEN_CHARS_MAX = 256
FINGERPRINT_CHARS = 6
ERROR_DOMAIN = "llamaorch.dev"


class TokenGate(aio.ServerInterceptor):
    """Lets calls through that carry a known token of a fit role; health is open to everybody."""

    def __init__(self, tokens: Mapping[str, TokenTable], clock: Clock) -> None:
        self._clock = clock
        self.use(tokens)

    def use(self, tokens: Mapping[str, TokenTable]) -> None:
        """Takes these tokens from now on; calls that are open go on."""
        self._tokens = [
            (bytes.fromhex(table.sha256), name, table) for name, table in tokens.items()
        ]

    async def intercept_service(
        self, continuation: Next, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a call, or one that refuses it."""
        if handler_call_details.method.startswith(HEALTH):
            return await continuation(handler_call_details)
        token = bearer(handler_call_details.invocation_metadata or ())
        refusal = self._refusal(token)
        if refusal is None:
            return await continuation(handler_call_details)
        code, sentence = refusal
        shown = hashlib.sha256((token or "").encode("utf-8", "replace")).hexdigest()
        log.info(
            "call_refused",
            reason=code.name,
            token_fingerprint=shown[:FINGERPRINT_CHARS] if token else "",
            human=f"A call was refused: {sentence}.",
        )
        return _refusing(code, sentence)

    def _refusal(self, token: str | None) -> tuple[grpc.StatusCode, str] | None:
        if token is None:
            text = "this host asks for a token: send `authorization: Bearer TOKEN`, once"
            return grpc.StatusCode.UNAUTHENTICATED, text
        presented = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        # All are compared: the time does not tell how far it came.
        for digest, name, table in self._tokens:
            if hmac.compare_digest(digest, presented):
                found = name, table
        if found is None:
            return grpc.StatusCode.UNAUTHENTICATED, "the token is not one of this host's"
        name, table = found
        if table.expires is not None and self._clock.wall_ns() / 1e9 >= table.expires.timestamp():
            text = f"the token of {name} expired at {table.expires}: ask the operator for another"
            return grpc.StatusCode.UNAUTHENTICATED, text
        if table.role in ROLES:
            return None
        text = f"the token of {name} has the role {table.role}; this call takes admin or client"
        return grpc.StatusCode.PERMISSION_DENIED, text


def bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The token that a call presents; None where it presents none, several, or too long a one."""
    given = [value for key, value in metadata if key == "authorization"]
    if len(given) != 1 or not isinstance(given[0], str):
        return None
    scheme, _, token = given[0].partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not 0 < len(token) <= TOKEN_CHARS_MAX:
        return None
    return token


def _refusing(code: grpc.StatusCode, text: str) -> "grpc.RpcMethodHandler[Any, Any]":
    """A handler that refuses at once. As a stream in both directions it waits for no message."""
    info = error_details_pb2.ErrorInfo(reason=code.name, domain=ERROR_DOMAIN)
    detail = any_pb2.Any()
    detail.Pack(info)
    status = rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=text, details=[detail])
    )

    async def refuse(_: object, context: Any) -> None:
        await context.abort(status.code, status.details, status.trailing_metadata)

    return grpc.stream_stream_rpc_method_handler(refuse)
