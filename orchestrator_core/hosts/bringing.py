"""Text that a continuation follows and that was evicted here: its former host brings it. LO-304."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from orchestrator_core.core.job import Attempt
from orchestrator_core.hosts.bindings import AttemptKey
from orchestrator_core.hosts.patience import Patience
from orchestrator_core.hosts.refilling import Tell, refill
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.hosts.rereading import Wanted, arrives, read_again
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.relay import Relay
from orchestrator_core.relay.sides import PATIENCE_S

# Texts that are brought at a time, each as long as a message at most; others wait, with their slot.
# Who waits for a host that is away takes no place: its jobs would hold up those of healthy hosts.
BRINGS_MAX = 8
# A host that sends steadily is listened to for so long, however many texts it has to bring.
TEXT_S = 60.0

_log = structlog.get_logger("orchestratord")

Brought = Callable[[list[Item]], None]
"""Gets the text from the beginning up to what the log holds; less where its host lacks some."""
Failed = Callable[[], None]
"""Ends the attempt as one whose text is lost."""


class Bringing:
    """The texts that are on their way, one for each attempt that is to follow one."""

    def __init__(self, relay: Relay, hosts: Hosts) -> None:
        self._relay = relay
        self._hosts = hosts
        self._room = asyncio.Semaphore(BRINGS_MAX)
        self._patience = Patience(TEXT_S)
        self._tasks: dict[AttemptKey, asyncio.Task[None]] = {}

    def begin(
        self, key: AttemptKey, former: Attempt, grace_s: float, brought: Brought, failed: Failed
    ) -> None:
        """Brings what was evicted of the output of the `former` attempt, which `key` follows.

        Its host is waited for at most `grace_s`; a place and the text then as long again, and some
        seconds, after whatever that host brought last, but no longer than `TEXT_S`. `brought` is
        called in any case, unless stopped; `failed` where a bug prevents that, also one in
        `brought`.
        """

        async def bring() -> None:
            brought(await self._in_time(former, grace_s))

        self._take_up(key, bring, failed)

    def refill(
        self,
        key: AttemptKey,
        former: Attempt,
        grace_s: float,
        tell: Tell,
        refilled: Callable[[], None],
        failed: Failed,
    ) -> None:
        """Takes the output of the `former` attempt into a doubtful log; `key` is to follow it.

        Waits as `begin`; `refilled` is called in any case, unless stopped, `failed` as there.
        """

        async def take() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s + TEXT_S):
                    await refill(self._relay, self._hosts, former, tell, grace_s)
            refilled()

        self._take_up(key, take, failed)

    def stop(self, key: AttemptKey) -> bool:
        """The attempt shall not begin any more; False when it did not wait for its text."""
        task = self._tasks.pop(key, None)
        return task is not None and task.cancel()

    def close(self) -> None:
        """Brings nothing more."""
        for task in self._tasks.values():
            task.cancel()

    def _take_up(
        self, key: AttemptKey, work: Callable[[], Awaitable[None]], failed: Failed
    ) -> None:
        task = self._tasks[key] = asyncio.create_task(_guarded(key, work, failed))

        def over(_: object) -> None:
            # What it led to may have taken its place.
            if self._tasks.get(key) is task:
                del self._tasks[key]

        task.add_done_callback(over)

    async def _in_time(self, former: Attempt, grace_s: float) -> list[Item]:
        """The text; nothing where it does not come in time."""
        if not await arrives(self._hosts, former.host_id, grace_s):
            return []
        host_id = former.host_id
        try:
            async with self._patience.of(host_id, grace_s + PATIENCE_S), self._room:
                with self._patience.reading(host_id):
                    return await self._text(former, grace_s)
        except TimeoutError:
            return []

    async def _text(self, former: Attempt, grace_s: float) -> list[Item]:
        relay, log = self._relay, self._relay.log(former.job_id)
        # What was told so far is what the next attempt follows.
        log.sealed = True
        items: list[Item] = []
        offset = 0
        try:
            while offset < log.oldest_offset and log.forgotten is None:
                known = items[-1].first_index if items else 0
                wanted = Wanted(offset, closed=True, first_index=known)
                more = await read_again(relay, self._hosts, former, wanted, grace_s)
                if not more:
                    break
                self._patience.heard(former.host_id)
                items += more
                offset = items[-1].end
        finally:
            self._hosts.unbind(former.job_id, former.number)
        return items


async def _guarded(key: AttemptKey, work: Callable[[], Awaitable[None]], failed: Failed) -> None:
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - a bug costs this job its text, and is logged
        _log.error(
            "bringing_failed",
            exc_info=error,
            job_id=key[0],
            human="A bug in the relay: report it.",
        )
        failed()
