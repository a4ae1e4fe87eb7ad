"""The pools as watchers see them: made anew a few times a second at most, for all of them at once.

OC-CTRL-2001.
"""

import asyncio
from dataclasses import dataclass
from itertools import islice

from llamaorch.orchestrator.v1 import pool_admin_service_pb2 as pb
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.runtime import Runtime
from orchestrator_core.servicers.paging import fitting, parts
from orchestrator_core.wire.pools import PoolView, pool_to_proto

INTERVAL_MS = 250
# Making the message of a pool takes some 15 us: so much time for it keeps it below a few per cent.
INTERVAL_PER_POOL_MS = 1
POOLS_PER_MESSAGE = 1_000
RETRY_MS = 5_000


@dataclass(frozen=True, slots=True)
class _Shown:
    """A pool as it was last made. `key` is what counts as a change, `revision` when it came."""

    message: pb.Pool
    key: bytes
    revision: int


class PoolBoard:
    """What all watchers share. O(pools) for each revision, nothing while nobody watches."""

    def __init__(self, runtime: Runtime, watchers_max: int) -> None:
        self._runtime = runtime
        self.watchers_max = watchers_max
        self._watchers = 0
        self._pools: dict[str, _Shown] = {}
        self._revision = 0
        self._steps_seen = -1
        self._made_s = float("-inf")

    async def page(self, after: str, size: int) -> tuple[list[pb.Pool], str]:
        """Pools as they are now, by id, from the first behind `after` on; and the last id of them.

        As many as fit into a message, of a `size` above 0 at most so many; the id is empty where
        none follow. A drain is told of once it is durable; while the journal is down, for a second
        later, pools tell that theirs is not. Raises as `Runtime.drains_settled`.
        """
        await self._runtime.drains_settled()
        undurable = self._runtime.undurable_drains()
        following = [pool_id for pool_id in sorted(self._runtime.core.pools) if pool_id > after]
        page = fitting(
            self.message(pool_id, undurable=pool_id in undurable)
            for pool_id in islice(following, size or None)
        )
        return page, page[-1].pool_id if len(page) < len(following) else ""

    def _messages(self) -> list[pb.Pool]:
        undurable = self._runtime.undurable_drains()
        return [
            self.message(pool_id, undurable=pool_id in undurable)
            for pool_id in sorted(self._runtime.core.pools)
        ]

    def message(self, pool_id: str, *, undurable: bool = False) -> pb.Pool:
        """A pool as it is now; one that is gone has nothing but its id."""
        core = self._runtime.core
        pool = core.pools.get(pool_id)
        if pool is None:
            return pb.Pool(pool_id=pool_id)
        return pool_to_proto(
            PoolView(
                pool,
                self._runtime.clock.now_ms(),
                self._runtime.hosts.reported.get(pool_id),
                core.tokens_per_s(pool),
                core.drain_of(pool_id),
                undurable,
            )
        )

    def watch(self) -> "Watcher":
        """A new watcher; use it as a context manager.

        Raises:
            RefusalError: ADMISSION_REJECT when there are as many as may be.
        """
        if self._watchers >= self.watchers_max:
            text = f"{self._watchers} readers watch the pools, as many as pools.watchers_max allows"
            label = "watchers"
            raise RefusalError(Refusal(Reason.ADMISSION_REJECT, text, RETRY_MS, policy_label=label))
        self._watchers += 1
        return Watcher(self)

    def left(self) -> None:
        """A watcher is gone."""
        self._watchers -= 1

    async def later_than(self, revision: int) -> int:
        """Waits for a revision later than the one given, and returns its number.

        After 0 comes what is so now: the last one may be as old as the last watcher.
        """
        if revision == 0:
            await self._runtime.drains_settled()
            if self._steps_seen != self._runtime.steps:
                self._make()
        while self._revision <= revision:
            if self._steps_seen == self._runtime.steps:
                await self._runtime.next_step()
            await asyncio.sleep(self._due_s())
            await self._runtime.drains_settled()
            # Another watcher may have made one meanwhile.
            if self._revision <= revision and self._due_s() <= 0:
                self._make()
        return self._revision

    def changes(self, revision: int, known: set[str]) -> tuple[list[pb.Pool], list[str]]:
        """Pools that changed after a revision, and which of the known ones are gone."""
        changed = [shown.message for shown in self._pools.values() if shown.revision > revision]
        return changed, sorted(known - self._pools.keys())

    def _due_s(self) -> float:
        """Seconds until the next revision may be made."""
        interval_ms = max(INTERVAL_MS, INTERVAL_PER_POOL_MS * len(self._pools))
        elapsed_s = asyncio.get_running_loop().time() - self._made_s
        return max(0.0, interval_ms / 1000 - elapsed_s)

    def _make(self) -> None:
        self._made_s = asyncio.get_running_loop().time()
        self._steps_seen = self._runtime.steps
        former, later = self._pools, self._revision + 1
        self._pools = {}
        for message in self._messages():
            key, known = _key(message), former.get(message.pool_id)
            same = known is not None and known.key == key
            since = known.revision if known is not None and same else later
            self._pools[message.pool_id] = _Shown(message, key, since)
        news = any(shown.revision == later for shown in self._pools.values())
        if news or former.keys() != self._pools.keys() or self._revision == 0:
            self._revision = later


class Watcher:
    """One reader of the board. Only the newest state waits for it, however slow it is."""

    def __init__(self, board: PoolBoard) -> None:
        self._board = board
        self._revision = 0
        self._known: set[str] = set()

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.left()

    async def next(self) -> list[pb.WatchPoolsResponse]:
        """Waits for what is new since the last call; the first call gives everything there is."""
        seen = self._revision
        self._revision = await self._board.later_than(seen)
        changed, removed = self._board.changes(seen, self._known)
        self._known = self._known.difference(removed) | {pool.pool_id for pool in changed}
        told = [pb.WatchPoolsResponse(pools=part) for part in parts(changed, POOLS_PER_MESSAGE)]
        told += [
            pb.WatchPoolsResponse(removed_pool_ids=removed[at : at + POOLS_PER_MESSAGE])
            for at in range(0, len(removed), POOLS_PER_MESSAGE)
        ]
        for message in told[:-1]:
            message.more = True
        return told or [pb.WatchPoolsResponse()]


def _key(message: pb.Pool) -> bytes:
    """The message without what changes with every snapshot."""
    bare = pb.Pool()
    bare.CopyFrom(message)
    bare.ClearField("snapshot_age_ms")
    bare.ClearField("snapshot_version")
    return bare.SerializeToString()
