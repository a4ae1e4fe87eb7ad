"""Limits per client identity: requests and tokens per minute, waiting jobs. ORCH-3006.

A token bucket holds one minute's worth. It is kept in 1/60,000 of a unit, so that a limit of N per
minute refills by exactly N of them each millisecond: whole numbers only, nothing drifts. A job that
is larger than the bucket is let in when the bucket is full and leaves a debt, so no limit makes a
job impossible.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice

from orchestrator_core.core.config import ThrottleConfig

MS_PER_MINUTE = 60_000
IDLE_LOOKED_AT = 8


@dataclass(slots=True, eq=False, repr=False)
class Bucket:
    """A token bucket of `per_min` units, full at first. Mutable: one owner."""

    _per_min: int
    _as_of_ms: int
    _level: int = field(init=False)

    def __post_init__(self) -> None:
        self._level = self._per_min * MS_PER_MINUTE

    def wait_ms(self, units: int, now_ms: int) -> int:
        """Exact time until `units` may be taken; 0: now."""
        self._refill(now_ms)
        lacking = min(units, self._per_min) * MS_PER_MINUTE - self._level
        return max(0, -(-lacking // self._per_min))

    def take(self, units: int, now_ms: int) -> None:
        """Takes units out, below empty where need be; a negative number puts them back."""
        self._refill(now_ms)
        self._level = min(self._level - units * MS_PER_MINUTE, self._per_min * MS_PER_MINUTE)

    def resized(self, per_min: int, now_ms: int) -> "Bucket":
        """A bucket of another size out of which as much was taken, as far as it has that much.

        Who is given less must not be kept out for longer than it takes to fill.
        """
        self._refill(now_ms)
        other = Bucket(per_min, now_ms)
        taken = self._per_min * MS_PER_MINUTE - self._level
        other._level = max(other._level - taken, min(self._level, 0))
        return other

    def full(self, now_ms: int) -> bool:
        """True when forgetting the bucket would change nothing."""
        self._refill(now_ms)
        return self._level == self._per_min * MS_PER_MINUTE

    def _refill(self, now_ms: int) -> None:
        passed_ms = now_ms - self._as_of_ms
        if passed_ms > 0:
            most = self._per_min * MS_PER_MINUTE
            self._level = min(most, self._level + passed_ms * self._per_min)
            self._as_of_ms = now_ms


@dataclass(slots=True)
class Account:
    """The buckets of one identity; None where it has no such limit."""

    requests: Bucket | None
    tokens: Bucket | None

    def idle(self, now_ms: int) -> bool:
        """True when forgetting the account would change nothing."""
        return all(b is None or b.full(now_ms) for b in (self.requests, self.tokens))


@dataclass(frozen=True, slots=True)
class Throttled:
    """One limit is reached; `wait_ms` is exact, None where only a departure can help."""

    policy_label: str
    limit: int
    wait_ms: int | None


@dataclass(slots=True, eq=False, repr=False)
class Throttle:
    """Who may still enqueue. Every call O(1).

    At most `identities_max` accounts are kept. The least recently used idle one goes first, and one
    that is forgotten begins anew with full buckets: that may let somebody in too early, and never
    keeps anybody out.
    """

    config: ThrottleConfig
    _accounts: OrderedDict[str, Account] = field(default_factory=OrderedDict)
    _waiting: dict[str, int] = field(default_factory=dict)

    def reconfigure(self, config: ThrottleConfig, now_ms: int) -> None:
        """Goes on with other limits; what identities have used stays used. O(identities)."""
        if config == self.config:
            return
        self.config = config
        for identity, account in list(self._accounts.items()):
            limits = config.limits(identity)
            account.requests = _resized(account.requests, limits.requests_per_min, now_ms)
            account.tokens = _resized(account.tokens, limits.tokens_per_min, now_ms)
            if account.requests is None and account.tokens is None:
                del self._accounts[identity]
        while len(self._accounts) > config.identities_max:
            self._forget_one(now_ms)

    def __len__(self) -> int:
        """Identities that are remembered."""
        return len(self._accounts)

    @property
    def limiting(self) -> bool:
        """True when anybody is limited at all; else nothing here need be asked."""
        return self.config.limiting

    def counts_tokens(self, identity: str) -> bool:
        """True when tokens of this identity are limited."""
        return self.config.limits(identity).tokens_per_min > 0

    def waiting(self, identity: str) -> int:
        """Jobs of an identity that wait in the queue."""
        return self._waiting.get(identity, 0)

    def check(self, identity: str, tokens: int, now_ms: int) -> Throttled | None:
        """The limit that keeps one more job of `tokens` out for longest, or None. Takes nothing."""
        limits = self.config.limits(identity)
        if limits.queued_jobs and self.waiting(identity) >= limits.queued_jobs:
            return Throttled("throttle-queued", limits.queued_jobs, None)
        account = self._account(identity, now_ms)
        if account is None:
            return None
        found = []
        if account.requests is not None:
            wait_ms = account.requests.wait_ms(1, now_ms)
            found.append(Throttled("throttle-requests", limits.requests_per_min, wait_ms))
        if account.tokens is not None:
            wait_ms = account.tokens.wait_ms(tokens, now_ms)
            found.append(Throttled("throttle-tokens", limits.tokens_per_min, wait_ms))
        worst = max(found, key=lambda t: t.wait_ms or 0, default=None)
        return worst if worst is not None and worst.wait_ms else None

    def charge(self, identity: str, requests: int, tokens: int, now_ms: int) -> None:
        """Takes requests and tokens out of the buckets; negative numbers give them back."""
        account = self._account(identity, now_ms)
        if account is None:
            return
        if account.requests is not None and requests:
            account.requests.take(requests, now_ms)
        if account.tokens is not None and tokens:
            account.tokens.take(tokens, now_ms)

    def entered(self, identity: str) -> None:
        """A job of the identity began to wait."""
        self._waiting[identity] = self._waiting.get(identity, 0) + 1

    def left(self, identity: str) -> None:
        """A job of the identity no longer waits. Raises KeyError when none did."""
        count = self._waiting[identity] - 1
        if count:
            self._waiting[identity] = count
        else:
            del self._waiting[identity]

    def _account(self, identity: str, now_ms: int) -> Account | None:
        """The account of an identity; None where nothing limits it per minute."""
        known = self._accounts.get(identity)
        if known is not None:
            self._accounts.move_to_end(identity)
            return known
        limits = self.config.limits(identity)
        if not limits.requests_per_min and not limits.tokens_per_min:
            return None
        made = Account(
            Bucket(limits.requests_per_min, now_ms) if limits.requests_per_min else None,
            Bucket(limits.tokens_per_min, now_ms) if limits.tokens_per_min else None,
        )
        if len(self._accounts) >= self.config.identities_max:
            self._forget_one(now_ms)
        self._accounts[identity] = made
        return made

    def _forget_one(self, now_ms: int) -> None:
        """Forgets the least recently used idle account; with none in sight, just the first."""
        oldest = list(islice(self._accounts, IDLE_LOOKED_AT))
        idle = (name for name in oldest if self._accounts[name].idle(now_ms))
        del self._accounts[next(idle, oldest[0])]


def _resized(bucket: Bucket | None, per_min: int, now_ms: int) -> Bucket | None:
    if not per_min:
        return None
    return Bucket(per_min, now_ms) if bucket is None else bucket.resized(per_min, now_ms)
