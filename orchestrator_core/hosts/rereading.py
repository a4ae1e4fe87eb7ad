"""Output that the relay no longer holds, from the host of the attempt that made it. LO-301."""

import asyncio

from orchestrator_core.core.job import Job
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.items import Item
from orchestrator_core.relay.relay import Relay
from orchestrator_core.relay.sides import PATIENCE_S, SIDE_BYTES, Source


async def read_again(
    relay: Relay, hosts: Hosts, job: Job, text_offset: int, grace_s: float, bytes_max: int
) -> list[Item]:
    """Text of a job from a place on, about `bytes_max`; nothing where no host has it.

    A host that is away, or does not answer, is waited for as long as for one that runs attempts,
    `grace_s`, and some seconds more. Waiting for other readers does not count.
    """
    log, attempt = relay.log(job.job_id), job.attempt
    if attempt is None or attempt.number != log.attempt:
        return []
    host_id, key = attempt.host_id, attempt.key
    source = Source(
        job.job_id,
        host_id,
        lambda first_index: hosts.send_again(host_id, key, first_index),
        min(bytes_max, SIDE_BYTES),
    )
    for _ in range(1 + int(grace_s / PATIENCE_S)):
        items = await relay.sides.read(source, log, text_offset)
        if items is not None:
            return items
        if host_id not in hosts.links and not await _arrives(hosts, host_id, grace_s):
            return []
        if not hosts.counts(host_id, key):
            return []
    return []


async def _arrives(hosts: Hosts, host_id: str, grace_s: float) -> bool:
    try:
        async with asyncio.timeout(grace_s):
            while host_id not in hosts.links:
                await hosts.arrival()
    except TimeoutError:
        return False
    return True
