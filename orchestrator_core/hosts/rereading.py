"""Output that the relay no longer holds, from the host of the attempt that made it. LO-301."""

import asyncio
from dataclasses import dataclass

from orchestrator_core.core.job import Attempt
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.relay import Relay
from orchestrator_core.relay.sides import PATIENCE_S, SIDE_BYTES, Source


@dataclass(frozen=True, slots=True)
class Wanted:
    """Text of an attempt from a place on, about `bytes_max`.

    Of one that is `closed` frames are taken again, until `Hosts.unbind`. The piece with
    `first_index` lies at or before the place.
    """

    text_offset: int
    bytes_max: int = SIDE_BYTES
    closed: bool = False
    first_index: int = 0


async def read_again(
    relay: Relay, hosts: Hosts, attempt: Attempt, wanted: Wanted, grace_s: float
) -> list[Item]:
    """Text of an attempt as wanted; nothing where its host has none.

    A host that is away, or does not answer, is waited for as long as for one that runs attempts,
    `grace_s`, and some seconds more; one that connected anew since it was asked is asked once more.
    Waiting for other readers does not count.
    """
    host_id, key = attempt.host_id, attempt.key
    log = relay.log(attempt.job_id)
    source = Source(
        attempt.job_id,
        host_id,
        lambda first_index: hosts.send_again(host_id, key, first_index),
        min(wanted.bytes_max, SIDE_BYTES),
        attempt.number,
        wanted.first_index,
    )
    tries, asked = 1 + int(grace_s / PATIENCE_S), None
    for number in range(tries + 1):
        link = hosts.links.get(host_id)
        if number == tries and link is asked:
            return []
        asked = link
        if wanted.closed:
            hosts.bind_again(host_id, key)
        items = await relay.sides.read(source, log, wanted.text_offset)
        if items is not None:
            return items
        if host_id not in hosts.links and not await arrives(hosts, host_id, grace_s):
            return []
        if not (wanted.closed or hosts.counts(host_id, key)):
            return []
    return []


async def arrives(hosts: Hosts, host_id: str, grace_s: float) -> bool:
    """True as soon as a host is here; False when it does not come within `grace_s`."""
    try:
        async with asyncio.timeout(grace_s):
            while host_id not in hosts.links:
                await hosts.arrival()
    except TimeoutError:
        return False
    return True
