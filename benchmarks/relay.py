"""What relaying costs orchestratord: CPU per token, latency, beside a bare grpc.aio relay.

    python -m benchmarks.relay [--streams 64,200,1000] [--rounds 2] [--window 8] [--quick]

A real orchestratord (SQLite, recorder, metrics, traces to a sink) serves played hosts and reading
clients in processes of their own. CPU is user and system time of the orchestratord process over a
steady window, divided by the tokens that clients read in it. The bare relay plays the same load in
turns with it; `x bare` is the ratio of the two.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.hosts import SLOTS
from benchmarks.load.processes import (
    Child,
    cpu_s,
    rss_bytes,
    start_orchestratord,
    start_sink,
)

# Bars of the design, section 11: microseconds of CPU per token.
BARS_US = {
    (False, 64): 40.0,
    (False, 200): 30.0,
    (True, 64): 20.0,
    (True, 200): 12.0,
    (True, 1_000): 5.0,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A load. `pools_per_host` pools of eight slots share a Dispatch stream."""

    streams: int
    exchange: bool
    pools_per_host: int
    connections: int
    rate: float = 50.0

    @property
    def pools(self) -> int:
        """Pools that hold all streams."""
        return -(-self.streams // SLOTS)

    @property
    def hosts(self) -> int:
        """Hosts that have these pools."""
        return -(-self.pools // self.pools_per_host)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of warm-up and of the window."""

    warm_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One window: CPU in microseconds per token, ages of tokens in ms, tokens in a message."""

    cpu_us: float
    tokens_per_s: float
    p50_ms: float
    p99_ms: float
    per_message: float
    cores: float
    rss_mib: float


@asynccontextmanager
async def bare_relay(directory: Path) -> AsyncIterator[tuple[Child, str]]:
    """The peer."""
    child = await Child.start("bare", ["benchmarks.load.bare"], directory)
    try:
        yield child, str((await child.answer())["address"])
    finally:
        await child.stop()


@asynccontextmanager
async def our_relay(directory: Path) -> AsyncIterator[tuple[Child, str]]:
    """orchestratord with its defaults, but for a queue that takes all jobs at once."""
    sink, endpoint = await start_sink(directory)
    try:
        settings = "[queue]\ncapacity = 10000\n"
        child, address = await start_orchestratord(directory, settings, endpoint)
        try:
            yield child, address
        finally:
            await child.stop()
    finally:
        await sink.stop()


@asynccontextmanager
async def loaded(case: Case, address: str, directory: Path) -> AsyncIterator[tuple[Child, Child]]:
    """Hosts and readers with all streams under way."""
    hosts = await Child.start(
        "hosts",
        ["benchmarks.load.hosts", address, f"--hosts={case.hosts}", f"--rate={case.rate}"]
        + [f"--pools={case.pools_per_host}"],
        directory,
    )
    try:
        await hosts.answer()
        readers = await Child.start(
            "readers",
            ["benchmarks.load.readers", address, f"--connections={case.connections}"],
            directory,
        )
        try:
            await readers.answer()
            await readers.ask("open", jobs=case.streams, exchange=case.exchange)
            yield hosts, readers
        finally:
            await readers.stop()
    finally:
        await hosts.stop()


async def measure(case: Case, timing: Timing, *, bare: bool) -> Figures:
    """Plays one load.

    Raises:
        RuntimeError: when a reader saw a violation.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        relay = bare_relay(directory) if bare else our_relay(directory)
        async with relay as (server, address), loaded(case, address, directory) as (hosts, readers):
            await asyncio.sleep(timing.warm_s)
            before, cpu0, at0 = await readers.ask("count"), cpu_s(server.pid), time.monotonic()
            await asyncio.sleep(timing.window_s)
            after, cpu1, at1 = await readers.ask("count"), cpu_s(server.pid), time.monotonic()
            rss = rss_bytes(server.pid) / 2**20
            await hosts.ask("finish")
            total, end = await hosts.ask("totals"), await readers.ask("close")
    if end["problems"] or end["tokens"] != total["tokens"]:
        raise RuntimeError(f"sent {total['tokens']} tokens, read {end}")
    tokens = after["tokens"] - before["tokens"]
    return Figures(
        cpu_us=(cpu1 - cpu0) / tokens * 1e6,
        tokens_per_s=tokens / (at1 - at0),
        p50_ms=after["p50_ms"],
        p99_ms=after["p99_ms"],
        per_message=tokens / (after["batches"] - before["batches"]),
        cores=(cpu1 - cpu0) / (at1 - at0),
        rss_mib=rss,
    )


async def compare(case: Case, timing: Timing, rounds: int) -> bool:
    """Prints one case, best of the rounds; True when its bar is met."""
    ours, bares = [], []
    for _ in range(rounds):
        bares.append(await measure(case, timing, bare=True))
        ours.append(await measure(case, timing, bare=False))
    best = min(ours, key=lambda it: it.cpu_us)
    bare = min(bares, key=lambda it: it.cpu_us)
    bar_us = BARS_US.get((case.exchange, case.streams))
    verdict = "" if bar_us is None else f"{'PASS' if best.cpu_us <= bar_us else 'FAIL'} <= {bar_us}"
    for name, it in (("orchestratord", best), ("bare", bare)):
        print(
            f"{'Exchange' if case.exchange else 'per job':9}{case.streams:6}  {name:14}"
            f"{it.cpu_us:8.1f}{it.cpu_us / bare.cpu_us:8.2f}{it.tokens_per_s:10.0f}{it.cores:7.2f}"
            f"{it.p50_ms:9.2f}{it.p99_ms:9.2f}{it.rss_mib:8.0f}"
            f"  {verdict if it is best else ''}",
            flush=True,
        )
    return bar_us is None or best.cpu_us <= bar_us


async def run(options: argparse.Namespace) -> int:
    """Prints the table; 1 when a bar was missed and that was asked for."""
    timing = Timing(options.warm, options.window)
    print("python -m benchmarks.relay " + " ".join(sys.argv[1:]))
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}; {options.pools_per_host} pools of {SLOTS} slots a host, "
        f"{options.connections} connections of clients, {options.rate:g} tokens/s a stream"
    )
    print(
        f"{'':9}{'streams':>7} {'':14}{'us/token':>9}{'x bare':>8}{'tokens/s':>10}{'cores':>7}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'MiB':>8}"
    )
    met = True
    for exchange in [name == "exchange" for name in options.modes.split(",")]:
        for streams in map(int, options.streams.split(",")):
            case = Case(
                streams, exchange, options.pools_per_host, options.connections, options.rate
            )
            met = await compare(case, timing, options.rounds) and met
    return 0 if met or not options.strict else 1


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--modes", default="job,exchange")
    parser.add_argument("--streams", default="64,200,1000")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm", type=float, default=4.0, help="seconds")
    parser.add_argument("--window", type=float, default=10.0, help="seconds")
    parser.add_argument("--pools-per-host", type=int, default=8)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second a stream")
    parser.add_argument("--strict", action="store_true", help="fail when a bar is missed")
    options = parser.parse_args(argv)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(run(options))
    return 130


if __name__ == "__main__":
    sys.exit(main())
