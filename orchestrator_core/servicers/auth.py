"""Asks every call for its token before anything of it is read. AUTH-1001..1008.

The decision takes the path of the method and the metadata alone, so it is the same for every style
of handler, for Exchange and Dispatch, and for reflection. Who is refused gets the status at once,
also one that never sends its message.
"""

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf.empty_pb2 import Empty

from orchestrator_core import clock
from orchestrator_core.auth import roles
from orchestrator_core.auth.tokens import Identity, Role, Tokens, bearer, fingerprint
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.servicers import rpc
from orchestrator_core.servicers.token_ends import OpenStreams, expired

Next = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]
Watch = Callable[[grpc.GenericRpcHandler], grpc.GenericRpcHandler]

# A guesser must not fill the disk with its refusals.
LOG_EVERY_S = 1.0
_OTHER = "/_OTHER"

# Each call is answered in a task of its own.
_refusal: ContextVar[Refusal] = ContextVar("orchestratord_refusal")

_log = structlog.get_logger("orchestratord")


class TokenGate(grpc.aio.ServerInterceptor):
    """Lets calls through whose token has a role that their method takes.

    `watched` counts the refused calls like all others. `wall_s` tells seconds since 1970.
    """

    def __init__(
        self, tokens: Tokens, watched: Watch, wall_s: Callable[[], float] = clock.wall_s
    ) -> None:
        self._tokens = tokens
        self._wall_s = wall_s
        self._streams = OpenStreams(wall_s)
        self._refusing = watched(_Refusing())
        self._logged_s = -LOG_EVERY_S
        self._unlogged = 0

    @property
    def tokens(self) -> Tokens:
        """The tokens that count now."""
        return self._tokens

    def use(self, tokens: Tokens) -> None:
        """Takes other tokens from here on.

        Streams go on whose token opens the same as before; others end with UNAUTHENTICATED, and
        their callers may open them again with a token that counts.
        """
        self._tokens = tokens
        self._streams.judge(tokens)

    async def watch_streams(self) -> None:
        """Ends streams with their tokens also after the machine slept, until cancelled."""
        await self._streams.watch()

    async def intercept_service(
        self, continuation: Next, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a call, or one that refuses it."""
        method = handler_call_details.method
        needed = roles.needed(method)
        if needed is roles.OPEN:
            return await continuation(handler_call_details)
        token = bearer(handler_call_details.invocation_metadata or ())
        identity = None if token is None else self._tokens.find(token)
        refusal = denial(token, identity, method, self._wall_s())
        if refusal is None:
            assert identity is not None, "nobody passes without a token"
            rpc.identify(identity, partial(self._streams.bounded, identity))
            return await continuation(handler_call_details)
        self._tell(method, refusal, token)
        _refusal.set(refusal)
        known = method if method in roles.ALLOWED else _OTHER
        return self._refusing.service(_Details(known))

    def _tell(self, method: str, refusal: Refusal, token: str | None) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s < LOG_EVERY_S:
            self._unlogged += 1
            return
        _log.warning(
            "call_refused",
            method=method[:128],
            reason=refusal.reason.value,
            token_fingerprint=fingerprint(token) if token is not None else "",
            not_logged=self._unlogged,
            human=f"A call was refused: {refusal.message}.",
        )
        self._logged_s, self._unlogged = now_s, 0


def denial(
    token: str | None, identity: Identity | None, method: str, now_s: float
) -> Refusal | None:
    """Why a call of a method is refused at an instant; None where it is not."""
    if token is None:
        text = "this server asks for a token: send `authorization: Bearer TOKEN`, once"
        return Refusal(Reason.UNAUTHENTICATED, text)
    if identity is None:
        return Refusal(Reason.UNAUTHENTICATED, "the token is not one of this server's")
    if identity.expired(now_s):
        return expired(identity)
    needed = roles.needed(method)
    if identity.role in needed:
        return None
    names = " or ".join(sorted(role.value for role in needed))
    return Refusal(
        Reason.PERMISSION_DENIED,
        f"the token of {identity.name} has the role {identity.role.value}; this call takes {names}",
        metadata={"role": identity.role.value, "needed": names},
    )


def tell_unbound(tokens: Tokens) -> None:
    """Warns of tokens of pools that are bound to no host, where there are several."""
    pools = [each for each in tokens.identities if each.role is Role.POOL]
    loose = sorted(each.name for each in pools if not each.host_id)
    if loose and len(pools) > 1:
        first = loose[0]
        _log.warning(
            "pool_tokens_unbound",
            unbound=len(loose),
            caller=first,
            human=f"{len(loose)} tokens of pools may register any host that nobody registered yet: "
            f'set auth.tokens."{first}".host_id, and so on.',
        )


class _Details(grpc.HandlerCallDetails):
    """The path of a method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class _Refusing(grpc.GenericRpcHandler):
    """Answers every method with the refusal of the current call, whatever is sent to it.

    It takes and gives a stream: that way no message has to arrive first.
    """

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        del handler_call_details
        return rpc.bidi(_refuse, Empty)


async def _refuse(_: rpc.Context) -> None:
    raise RefusalError(_refusal.get())
