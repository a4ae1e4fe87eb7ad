"""Text that a continuation follows and that was evicted here: its former host brings it. LO-304."""

import asyncio
from collections.abc import Callable

import structlog

from orchestrator_core.core.job import Attempt
from orchestrator_core.hosts.bindings import AttemptKey
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.hosts.rereading import Wanted, read_again
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.relay import Relay

# Texts that are brought at a time, each as long as a message at most; others wait, with their slot.
BRINGS_MAX = 8

_log = structlog.get_logger("orchestratord")

Brought = Callable[[list[Item]], None]
"""Gets the text from the beginning up to what the log holds; less where its host lacks some."""


class Bringing:
    """The texts that are on their way, one for each attempt that is to follow one."""

    def __init__(self, relay: Relay, hosts: Hosts) -> None:
        self._relay = relay
        self._hosts = hosts
        self._room = asyncio.Semaphore(BRINGS_MAX)
        self._tasks: dict[AttemptKey, asyncio.Task[None]] = {}

    def begin(self, key: AttemptKey, former: Attempt, grace_s: float, brought: Brought) -> None:
        """Brings what was evicted of the output of the `former` attempt, which `key` follows.

        Its host is waited for as in `read_again`. `brought` is called in any case, unless stopped.
        """
        task = self._tasks[key] = asyncio.create_task(self._bring(former, grace_s, brought))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def stop(self, key: AttemptKey) -> bool:
        """The attempt shall not begin any more; False when it did not wait for its text."""
        task = self._tasks.pop(key, None)
        return task is not None and task.cancel()

    def close(self) -> None:
        """Brings nothing more."""
        for task in self._tasks.values():
            task.cancel()

    async def _bring(self, former: Attempt, grace_s: float, brought: Brought) -> None:
        try:
            async with self._room:
                items = await self._text(former, grace_s)
        except Exception as error:  # noqa: BLE001 - a bug costs this job its text, and is logged
            items = []
            _log.error("bringing_failed", exc_info=error, human="A bug in the relay: report it.")
        brought(items)

    async def _text(self, former: Attempt, grace_s: float) -> list[Item]:
        relay, log = self._relay, self._relay.log(former.job_id)
        # What was told so far is what the next attempt follows.
        log.sealed = True
        items: list[Item] = []
        offset = 0
        try:
            while offset < log.oldest_offset and log.forgotten is None:
                wanted = Wanted(offset, closed=True)
                more = await read_again(relay, self._hosts, former, wanted, grace_s)
                if not more:
                    break
                items += more
                offset = items[-1].end
        finally:
            self._hosts.unbind(former.job_id, former.number)
        return items
