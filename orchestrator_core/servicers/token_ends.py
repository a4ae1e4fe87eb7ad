"""What becomes of a token's streams when it expires or is withdrawn, and who is warned before.

A call is judged when it begins. A stream may stay open for weeks, so it also ends with its token.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog

from orchestrator_core import clock
from orchestrator_core.auth.tokens import Identity, Tokens
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError

DAY_S = 86_400.0
# So often it is looked who has to be warned.
LOOK_EVERY_S = 3_600.0
LOOK_AGAIN_S = 60.0
# The end is waited for by another clock than it is stated in.
CLOCKS_APART_S = 1.0

_log = structlog.get_logger("orchestratord")


def expired(identity: Identity) -> Refusal:
    """The answer to a token whose time is over."""
    text = (
        f"the token of {identity.name} expired at {identity.expires}: ask the operator for another"
    )
    return Refusal(Reason.UNAUTHENTICATED, text)


class OpenStreams:
    """The streams that are open, by the token that opened them. `wall_s`: seconds since 1970."""

    def __init__(self, wall_s: Callable[[], float] = clock.wall_s) -> None:
        self._wall_s = wall_s
        self._open: dict[tuple[str, str], dict[asyncio.Timeout, Identity]] = {}
        self._judged: Tokens | None = None

    @asynccontextmanager
    async def bounded(self, who: Identity) -> AsyncIterator[None]:
        """Ends the block when the token expires or is withdrawn.

        Raises:
            RefusalError: UNAUTHENTICATED, then.
        """
        # Other tokens may count since the call was let through.
        limit = asyncio.timeout_at(self._due(who, self._known()))
        try:
            async with limit:
                with self._listed(limit, who):
                    yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise RefusalError(self._why(who)) from None

    @contextmanager
    def _listed(self, limit: asyncio.Timeout, who: Identity) -> Iterator[None]:
        key = who.name, who.fingerprint
        mine = self._open.setdefault(key, {})
        mine[limit] = who
        try:
            yield
        finally:
            del mine[limit]
            if not mine:
                self._open.pop(key, None)

    def _why(self, who: Identity) -> Refusal:
        if who.expired(self._wall_s() + CLOCKS_APART_S):
            return expired(who)
        text = f"the token of {who.name} was withdrawn, or opens something else now: connect again"
        return Refusal(Reason.UNAUTHENTICATED, text)

    def judge(self, tokens: Tokens) -> None:
        """Ends the streams of tokens that are not among these, or open something else now."""
        self._judged = tokens
        self.look()

    async def watch(self) -> None:
        """Looks every minute, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            self.look()

    def look(self) -> None:
        """Waits for the end of each token by the present time.

        The loop's clock, by which it is waited, stands still while the machine sleeps, and does not
        follow when its clock is set.
        """
        known = self._known()
        for streams in self._open.values():
            for limit, who in streams.items():
                if not limit.expired():
                    limit.reschedule(self._due(who, known))

    def _known(self) -> dict[tuple[str, str], Identity] | None:
        """The tokens that were judged by last; None while all count that were let through."""
        if self._judged is None:
            return None
        return {(each.name, each.fingerprint): each for each in self._judged.identities}

    def _due(self, who: Identity, known: dict[tuple[str, str], Identity] | None) -> float | None:
        """When its streams end, by the clock of the event loop."""
        now = who if known is None else known.get((who.name, who.fingerprint))
        if now is None or _opens(now) != _opens(who):
            return self._now()
        if now.expires_s is None:
            return None
        return self._now() + max(0.0, now.expires_s - self._wall_s())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _opens(who: Identity) -> tuple[object, ...]:
    return who.role, who.sees_all, who.host_id


class ExpiryWarnings:
    """Tells the log of tokens that expire soon, or have: each once a day.

    `tokens` is asked at each look for those that count, `days` how long before the end
    it begins; 0: never.
    """

    def __init__(
        self,
        tokens: Callable[[], Tokens],
        days: Callable[[], int],
        wall_s: Callable[[], float] = clock.wall_s,
    ) -> None:
        self._tokens = tokens
        self._days = days
        self._wall_s = wall_s
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """Looks now and every hour, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Tells of those of which nothing was told today."""
        now_s = self._wall_s()
        today = int(now_s // DAY_S)
        days = self._days()
        soon = [
            each
            for each in self._tokens().identities
            if each.expires_s is not None and each.expires_s - now_s <= days * DAY_S
        ]
        told, self._told = self._told, {}
        for each in soon if days else ():
            self._told[each.name] = today
            if told.get(each.name) != today:
                _tell(each, now_s)


def _tell(who: Identity, now_s: float) -> None:
    over = who.expired(now_s)
    human = f"The token of {who.name} expired at {who.expires}: its calls are refused."
    if not over:
        human = f"The token of {who.name} expires at {who.expires}: make another one before."
    _log.warning(
        "token_expired" if over else "token_expires",
        caller=who.name,
        token_fingerprint=who.fingerprint,
        expires=who.expires,
        human=human,
    )
