"""Peers that vanish without a word: found in time, reconnected, and not a byte lost.

LO-301, LO-305; reliability fault F5.
"""

import asyncio
import datetime as dt
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from demo.services import Service
from tests.integration.faults.netns import ADDRESSES, Network, network

ROOT = Path(__file__).parents[3]
PATHS = os.pathsep.join(str(ROOT / part) for part in ("", "proto", "clients/python"))
ADDRESS = f"{ADDRESSES['a']}:7070"
HEARTBEAT_S = 2.0
# Longer than the client's keepalive and its timeout.
VANISHED_S = 9.0
TOKENS = 150
WAIT_S = 50.0


class Site:
    """Programs on the two sides of a network."""

    def __init__(self, directory: Path, net: Network, stack: AsyncExitStack) -> None:
        self.directory = directory
        self.net = net
        self._stack = stack

    async def run(self, side: str, name: str, *arguments: str) -> Service:
        """Starts a Python program on a side; it is killed at the end of the test."""
        process = await asyncio.create_subprocess_exec(
            *self.net.command(side),
            sys.executable,
            *arguments,
            cwd=self.directory,
            env=os.environ | {"PYTHONPATH": PATHS},
            stderr=asyncio.subprocess.PIPE,
        )
        service = Service(name, process, self.directory / f"{name}.log")
        service._reader = asyncio.create_task(service._read())
        self._stack.push_async_callback(_killed, service)
        return service

    async def client(self, side: str, name: str) -> Service:
        """Starts a client with one job."""
        script = str(Path(__file__).with_name("following.py"))
        return await self.run(side, name, script, ADDRESS, str(TOKENS))


async def _killed(service: Service) -> None:
    if service.process.returncode is None:
        service.process.kill()
    await service.process.wait()
    assert service._reader is not None
    await service._reader


def text_of(site: Site, name: str) -> str:
    """All output that a client printed."""
    lines = (site.directory / f"{name}.log").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return "".join(event.get("text", "") for event in events)


def instant(entry: dict[str, object]) -> dt.datetime:
    """When a log line was written."""
    return dt.datetime.fromisoformat(str(entry["timestamp"]))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Orchestratord on side a, with a heartbeat of two seconds."""
    with network() as net:
        async with AsyncExitStack() as stack:
            site = Site(tmp_path, net, stack)
            (tmp_path / "orchestratord.toml").write_text(
                f'listen = "{ADDRESS}"\n[pools]\nreport_interval_ms = 500\n'
                f"heartbeat_timeout_ms = {int(HEARTBEAT_S * 1000)}\n"
            )
            (tmp_path / "pool.toml").write_text(
                f'orchestrator = "{ADDRESS}"\nlisten = "127.0.0.1:0"\ndevices = "cpu"\n'
                "[link]\nbackoff = { initial_ms = 50, cap_ms = 200 }\n"
                '[[pools]]\npool_id = "mock"\n[pools.engine]\nkind = "mock"\n'
            )
            yield site


async def test_a_host_that_vanishes_is_found_and_goes_on_at_the_byte(site: Site) -> None:
    """Both ends notice within the heartbeat timeout; the same attempt completes the job."""
    orchestrator = await site.run("a", "orchestratord", "-m", "orchestrator_core")
    await orchestrator.event("listening")
    host = await site.run("b", "host", "-m", "pool_managerd", "--config", "pool.toml")
    await orchestrator.event("host_up")

    async with asyncio.timeout(WAIT_S):
        calm = await site.client("a", "calm")
        await calm.process.wait()
        client = await site.client("a", "client")
        await client.event("tokens")
        cut_at = dt.datetime.now(dt.UTC)
        site.net.cut()
        down, lost = await orchestrator.event("host_down"), await host.event("session_lost")
        site.net.heal()
        end = await client.event("end")
        await client.process.wait()

    started = [line for line in client.log_path.read_text().splitlines() if "started" in line]
    assert down["why"] == "silent for too long"
    assert 0 < (instant(down) - cut_at).total_seconds() < HEARTBEAT_S + 1
    assert 0 < (instant(lost) - cut_at).total_seconds() < HEARTBEAT_S + 1
    assert end["resumes"] == 0
    assert len(started) == 1
    assert text_of(site, "client") == text_of(site, "calm") != ""


async def test_a_client_that_is_cut_off_finds_it_and_resumes_at_the_byte(site: Site) -> None:
    """Keepalive finds the dead connection; the job went on, and its text comes without a gap."""
    orchestrator = await site.run("a", "orchestratord", "-m", "orchestrator_core")
    await orchestrator.event("listening")
    await site.run("a", "host", "-m", "pool_managerd", "--config", "pool.toml")
    await orchestrator.event("host_up")

    async with asyncio.timeout(WAIT_S):
        calm = await site.client("a", "calm")
        await calm.process.wait()
        client = await site.client("b", "client")
        await client.event("tokens")
        site.net.cut()
        await asyncio.sleep(VANISHED_S)
        site.net.heal()
        end = await client.event("end")
        await client.process.wait()

    assert int(str(end["resumes"])) > 0
    assert text_of(site, "client") == text_of(site, "calm") != ""
