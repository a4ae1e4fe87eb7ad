"""How long Enqueue takes and how often it can be called, with SQLite and all telemetry.

    python -m benchmarks.enqueue [--rate 500] [--seconds 10] [--quick] [--strict]

A real orchestratord, its journal on this machine's disk, traces exported to a sink. Jobs join a
queue behind one busy pool, so what is measured is accepting: parsing, the core's step, a durable
commit, the answer. `at a rate` sends on schedule, whether or not answers came (open loop), and
counts from the scheduled instant; `as fast as it goes` keeps a number of calls under way.
`bare` is the same client against a server that answers at once. `disk` is what the disk takes to
keep a small write, as often as a busy journal asks for it: no answer comes sooner than that.
What is measured is the orchestrator_core of the present folder: `make bench-enqueue` takes the
compiled one, as installed.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.core import Verdicts
from benchmarks.load.control import Fields
from benchmarks.load.processes import Child, cpu_s, rss_bytes, start_orchestratord, start_sink
from benchmarks.machine import run_on_machine

QUEUE = "[queue]\ncapacity = 1000000\n[jobs]\nidempotency_max = 1000000\n"
P99_BAR_MS = 10.0
UNARY_BAR = 1_000.0
EXCHANGE_BAR = 3_000.0
QUEUED_BYTES_BAR = 6_000.0
IDLE_BYTES_BAR = 25_000.0
UNARY_IN_FLIGHT = 64
EXCHANGE_IN_FLIGHT = 512
DISK_WRITES = 300
DISK_BYTES = 8_192
DISK_PAUSE_S = 0.005


@asynccontextmanager
async def served(directory: Path, *, bare: bool) -> AsyncIterator[tuple[Child, Child]]:
    """A server with one full pool, and a client: both processes."""
    children: list[Child] = []
    try:
        if bare:
            server = await Child.start("bare", ["benchmarks.load.bare"], directory)
            address = str((await server.answer())["address"])
        else:
            sink, endpoint = await start_sink(directory)
            children.append(sink)
            server, address = await start_orchestratord(directory, QUEUE, endpoint)
        children.append(server)
        # One token in a thousand seconds: a slot stays busy and costs nothing.
        hosts = await Child.start(
            "hosts", ["benchmarks.load.hosts", address, "--rate=0.001"], directory
        )
        children.append(hosts)
        await hosts.answer()
        client = await Child.start("givers", ["benchmarks.load.givers", address], directory)
        children.append(client)
        await client.answer()
        yield server, client
    finally:
        for child in reversed(children):
            await child.stop()


async def play(server: Child, client: Child, command: str, fields: Fields) -> Fields:
    """One load; its figures, with CPU per call in microseconds."""
    before_s = cpu_s(server.pid)
    told = await client.ask(command, **fields)
    told["cpu_us"] = (cpu_s(server.pid) - before_s) / max(1, told["calls"]) * 1e6
    if told["errors"]:
        raise RuntimeError(f"{told['errors']} calls failed: {told['kinds']}")
    return told


async def memory(directory: Path, jobs: int, streams: int, verdicts: Verdicts) -> None:
    """Resident memory for each queued job and for each stream on which nothing happens."""
    async with served(directory, bare=False) as (server, client):
        await client.ask("warm_up")
        await client.ask("fast", calls=jobs // 10, in_flight=64)
        before = rss_bytes(server.pid)
        told = await client.ask("fast", calls=jobs, in_flight=64)
        queued = (rss_bytes(server.pid) - before) / jobs - told["prompt_bytes"]
        verdicts.judge("bytes of RSS per queued job, prompt left out", queued, QUEUED_BYTES_BAR)
        await client.ask("idle", streams=streams // 10)
        before = rss_bytes(server.pid)
        await client.ask("idle", streams=streams)
        idle = (rss_bytes(server.pid) - before) / streams
        verdicts.judge("bytes of RSS per idle stream", idle, IDLE_BYTES_BAR)


def loads(options: argparse.Namespace) -> list[tuple[str, str, Fields]]:
    """What is played: its name, the client's command and that command's fields."""
    unary = {"calls": options.calls, "in_flight": UNARY_IN_FLIGHT}
    exchange = {"calls": options.calls, "in_flight": EXCHANGE_IN_FLIGHT}
    at_rate = {"rate": options.rate, "seconds": options.seconds}
    return [
        (f"at {options.rate:g}/s", "at_rate", at_rate),
        (f"unary, {UNARY_IN_FLIGHT} under way", "fast", unary),
        (f"Exchange, {EXCHANGE_IN_FLIGHT} under way", "fast_exchange", exchange),
    ]


def disk(directory: Path) -> None:
    """Prints how long small durable writes take on the disk of the journal, in one column."""
    took_ms = []
    with (directory / "disk").open("wb", buffering=0) as file:
        for _ in range(DISK_WRITES):
            began_s = time.monotonic()
            file.write(bytes(DISK_BYTES))
            os.fdatasync(file.fileno())
            took_ms.append(1000 * (time.monotonic() - began_s))
            time.sleep(DISK_PAUSE_S)
    p50_ms, p99_ms = statistics.median(took_ms), statistics.quantiles(took_ms, n=100)[-1]
    print(
        f"{'disk':14}{DISK_BYTES // 1024} KiB, fdatasync{'':14}{p50_ms:9.2f}{p99_ms:9.2f}",
        flush=True,
    )


async def rates(options: argparse.Namespace, root: Path, verdicts: Verdicts) -> None:
    """Latency at a rate, and the highest rates."""
    ours: dict[str, list[Fields]] = {}
    for turn in range(options.rounds):
        for bare in (True, False):
            directory = made(root / f"{turn}-{bare}")
            if not bare:
                disk(directory)
            async with served(directory, bare=bare) as (server, client):
                if not bare and not ours:
                    print(f"core: {(await server.logged('listening'))['core']}", flush=True)
                await client.ask("warm_up")
                for what, command, fields in loads(options):
                    told = await play(server, client, command, fields)
                    show(what, told, bare=bare)
                    if not bare:
                        ours.setdefault(command, []).append(told)
    p99_ms = min(told["p99_ms"] for told in ours["at_rate"])
    verdicts.judge(f"p99 at {options.rate:g}/s, ms, best round", p99_ms, P99_BAR_MS)
    for what, command, bar in (
        ("unary", "fast", UNARY_BAR),
        ("Exchange", "fast_exchange", EXCHANGE_BAR),
    ):
        highest = max(told["calls_per_s"] for told in ours[command])
        verdicts.judge(f"{what} calls per second, best round", highest, bar, least=True)


def made(directory: Path) -> Path:
    """A new folder."""
    directory.mkdir()
    return directory


async def run(options: argparse.Namespace) -> int:
    """Prints the figures; 1 when a bar was missed and that was asked for."""
    print("python -m benchmarks.enqueue " + options.told)
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        root = Path(name)
        print(f"{'':34}{'calls/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'us CPU':>9}")
        await rates(options, root, verdicts)
        await memory(made(root / "memory"), options.jobs, options.streams, verdicts)
    return 1 if verdicts.missed and options.strict else 0


def show(what: str, told: Fields, *, bare: bool) -> None:
    """Prints one line."""
    print(
        f"{'bare' if bare else 'orchestratord':14}{what:20}{told['calls_per_s']:9.0f}"
        f"{told['p50_ms']:9.2f}{told['p99_ms']:9.2f}{told['cpu_us']:9.0f}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=10_000, help="queued jobs for memory")
    parser.add_argument("--streams", type=int, default=1_000, help="idle streams for memory")
    parser.add_argument(
        "--directory", default=None, help="where the journal is; default: temporary"
    )
    parser.add_argument("--quick", action="store_true", help="shows that it works, no more")
    parser.add_argument("--strict", action="store_true", help="fail when a bar is missed")
    options = parser.parse_args(argv)
    options.told = " ".join(sys.argv[1:] if argv is None else argv)
    if options.quick:
        options.seconds, options.calls, options.rounds = 0.5, 100, 1
        options.jobs, options.streams = 100, 20
    with run_on_machine():
        return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
