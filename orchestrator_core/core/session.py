"""Sessions: consecutive jobs of one conversation of one client. ORCH-3021, ORCH-3022, ORCH-3099.

A session remembers where its keys and values are, how many turns it took, what its jobs spent and
what is set aside for those that have not ended. It lives until it was silent for its time to live;
one with jobs that have not ended is not silent. `spending` applies the rules.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator_core.core.plain_init import plain_init
from orchestrator_core.core.spec import NO_BUDGETS, Budgets


@plain_init
@dataclass(frozen=True, slots=True)
class Hold:
    """What is set aside for a job that has not ended: all that it may take.

    `prompt_tokens` is an estimate, the others are bounds. 0 where no budget bounds it.
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    time_ms: int = 0
    cost_micros: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and output together."""
        return self.prompt_tokens + self.output_tokens


@plain_init
@dataclass(frozen=True, slots=True)
class Spent:
    """What was really used: tokens, milliseconds at a pool, millionths of the currency unit."""

    tokens: int = 0
    time_ms: int = 0
    cost_micros: int = 0


NOTHING_SPENT = Spent()


@dataclass(slots=True)
class Session:
    """One conversation. `identity` is the client that opened it, and the only one that it knows.

    `budgets` are those that the client asked for. `turns` counts accepted jobs, but those that
    never ran. `held` maps each job that has not ended to what is set aside for it. `pool_id` and
    `replica_id` name the incarnation whose cache holds `kv_tokens` of it, None where the engine
    did not count them; empty where no cache is expected to.
    """

    identity: str
    session_id: str
    opened_ms: int
    used_ms: int
    budgets: Budgets = NO_BUDGETS
    turns: int = 0
    spent: Spent = NOTHING_SPENT
    held: dict[str, Hold] = field(default_factory=dict)
    pool_id: str = ""
    replica_id: str = ""
    kv_tokens: int | None = None

    @property
    def key(self) -> str:
        """Names the session among those of all clients."""
        return session_key(self.identity, self.session_id)

    def reserved(self) -> Spent:
        """What is set aside for all its jobs. O(jobs that have not ended)."""
        tokens = time_ms = cost_micros = 0
        for hold in self.held.values():
            tokens += hold.tokens
            time_ms += hold.time_ms
            cost_micros += hold.cost_micros
        return Spent(tokens, time_ms, cost_micros)

    def spend(self, more: Spent) -> None:
        """Adds to what was used."""
        spent = self.spent
        self.spent = Spent(
            spent.tokens + more.tokens,
            spent.time_ms + more.time_ms,
            spent.cost_micros + more.cost_micros,
        )


def session_key(identity: str, session_id: str) -> str:
    """One text for both, different for different pairs."""
    return f"{len(identity)}:{identity}{session_id}"


@dataclass(slots=True, eq=False, repr=False)
class Sessions:
    """All sessions. Every call O(1) unless it says otherwise.

    `_idle` holds those without jobs that have not ended, the least recently used first, `_warm`
    those that a pool's cache is expected to hold, by pool, in the same order.
    """

    _all: dict[str, Session] = field(default_factory=dict)
    _idle: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _warm: dict[str, OrderedDict[str, None]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Sessions that are remembered."""
        return len(self._all)

    def __iter__(self) -> Iterator[Session]:
        """All of them, in the order in which they were opened."""
        return iter(self._all.values())

    def get(self, key: str) -> Session | None:
        """A session by its key, expired or not."""
        return self._all.get(key)

    def oldest_idle(self) -> Session | None:
        """The least recently used one without jobs that have not ended."""
        key = next(iter(self._idle), None)
        return None if key is None else self._all[key]

    def add(self, session: Session) -> None:
        """Remembers a session; there must be none with its key."""
        assert session.key not in self._all, "a session is opened once"
        self._all[session.key] = session
        self.touch(session)

    def touch(self, session: Session) -> None:
        """Notes that a session was used, or what it holds has changed."""
        self._idle.pop(session.key, None)
        if not session.held:
            self._idle[session.key] = None

    def forget(self, session: Session) -> None:
        """Removes every trace of a session."""
        self.cool(session)
        del self._all[session.key]
        self._idle.pop(session.key, None)

    def warm(
        self, session: Session, pool_id: str, replica_id: str, tokens: int | None, slots: int
    ) -> None:
        """Notes that a pool of so many slots holds a session's keys and values now. ORCH-3022.

        Each slot holds those of one session: the ones served longest ago have lost theirs.
        """
        self.cool(session)
        session.pool_id, session.replica_id, session.kv_tokens = pool_id, replica_id, tokens
        at_pool = self._warm.setdefault(pool_id, OrderedDict())
        at_pool[session.key] = None
        while len(at_pool) > max(1, slots):
            self.cool(self._all[next(iter(at_pool))])

    def cool(self, session: Session) -> None:
        """Notes that no cache is expected to hold a session any more."""
        at_pool = self._warm.get(session.pool_id)
        if at_pool is not None:
            at_pool.pop(session.key, None)
            if not at_pool:
                del self._warm[session.pool_id]
        session.pool_id = session.replica_id = ""
        session.kv_tokens = None
