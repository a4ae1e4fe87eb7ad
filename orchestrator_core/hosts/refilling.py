"""A log that was begun anew after a restart, and text that an earlier attempt's host has. LO-304.

orchestratord died after the journal had an attempt and before its host had it. The attempt before
it proves what was delivered: its output is taken again as if it were still the present one, and the
next attempt follows that.
"""

import asyncio
from collections.abc import Callable

from orchestrator_core.core.job import Attempt
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.hosts.rereading import arrives
from orchestrator_core.relay.log import OutputLog
from orchestrator_core.relay.relay import Relay
from orchestrator_core.relay.sides import PATIENCE_S

Tell = Callable[[Attempt], None]
"""Tells readers of the attempt, unless they know of it."""


async def refill(relay: Relay, hosts: Hosts, former: Attempt, tell: Tell, grace_s: float) -> None:
    """Takes the output of the `former` attempt into its log, which is not doubtful any more then.

    It stays doubtful where its host does not come within `grace_s`, has nothing of the attempt, or
    sends nothing for so long. Whoever calls bounds the time in all.
    """
    log = relay.log(former.job_id)
    in_vain = 0
    while log.doubtful and in_vain <= grace_s / PATIENCE_S:
        if not await arrives(hosts, former.host_id, grace_s):
            return
        before = log.next_offset
        if not await _take(log, hosts, former, tell):
            return
        in_vain = in_vain + 1 if log.next_offset == before else 0


async def _take(log: OutputLog, hosts: Hosts, former: Attempt, tell: Tell) -> bool:
    """Asks once for what is missing, and takes what comes; False where the host has nothing."""
    host_id, key, held_bytes = former.host_id, former.key, former.held_bytes
    log.begin_attempt(former.number)
    hosts.bind_again(host_id, key)
    if held_bytes is None or hosts.send_again(host_id, key, log.next_index) is None:
        return False
    tell(former)
    changed = asyncio.Event()
    reader = log.open(None, changed.set, late=True)
    try:
        while log.next_offset < held_bytes and await _grows(log, changed):
            pass
    finally:
        log.close(reader)
        hosts.unbind(*key)
    log.told_all(held_bytes)
    return True


async def _grows(log: OutputLog, changed: asyncio.Event) -> bool:
    """True once there is more text; False when none came for `PATIENCE_S`."""
    before = log.next_offset
    try:
        async with asyncio.timeout(PATIENCE_S):
            while log.next_offset == before:
                changed.clear()
                await changed.wait()
    except TimeoutError:
        return False
    return True
