"""CPU per token in pool-managerd, beside bare readers of the same streams.

    python -m benchmarks.host [--seconds 10] [--rounds 3] [--streams 8] [--rate 50]

The real orchestratord and pool-managerd, which launches a llama-server without a model that streams
at `--rate` tokens per second in every slot, unsynchronised; one client reads all jobs. CPU is user
and system time of the pool-managerd process alone. The peers read such a server and only count
events: aiohttp on uvloop, and a loop of epoll and recv. All run in turns; the best round of each
counts, because noise only adds.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load.processes import Child, cpu_s, start_orchestratord
from benchmarks.machine import run_on_machine
from llamaorch_client import AsyncClient, Sampling, Tokens
from llamaorch_client.stream import JobStream

BAR_US = 30.0
READY_TIMEOUT_S = 60.0
WARM_S = 2.0
MODEL = "paced"
ENDLESS = 500_000
SERVER = Path(__file__).resolve().parent / "load" / "llama_engine.py"
TOML = """
orchestrator = "{orchestrator}"
listen = "127.0.0.1:0"
devices = "cpu"
log_level = "warning"
[[pools]]
pool_id = "p0"
[pools.engine]
kind = "llama_server"
model_id = "{model}"
[pools.engine.launch]
command = [
  "{python}", "-S", "{server}", "--port", "{{port}}", "--slots", "{slots}", "--rate", "{rate}",
]
"""


@dataclass(frozen=True, slots=True)
class Load:
    """Streams at a time, tokens per second of each, and seconds of a round."""

    streams: int
    rate: float
    seconds: float


def main() -> int:
    """Prints the figures; exit 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rate", type=float, default=50.0)
    arguments = parser.parse_args()
    load = Load(arguments.streams, arguments.rate, arguments.seconds)
    print(
        f"python -m benchmarks.host --seconds {load.seconds:g} --rounds {arguments.rounds} "
        f"--streams {load.streams} --rate {load.rate:g}"
    )
    with run_on_machine(), tempfile.TemporaryDirectory(prefix="llama-orch-host-") as directory:
        seen = asyncio.run(measured(Path(directory), load, arguments.rounds))
    print(f"idle pool-managerd: {seen.idle_ms:.1f} ms of CPU per second")
    print(f"pool-managerd: {_all(seen.ours_us)} us of CPU per token, idle time included")
    print(f"bare aiohttp:  {_all(seen.bare_us)} us of CPU per token")
    print(f"epoll, recv:   {_all(seen.epoll_us)} us of CPU per token")
    best_us, peer_us = min(seen.ours_us), min(seen.bare_us)
    print(
        f"{load.streams} x {load.rate:g} tokens/s: {best_us:.1f} us per token, "
        f"{best_us / peer_us:.2f} x bare, {best_us - peer_us:.1f} us above it (bar {BAR_US:.0f})"
    )
    if best_us > BAR_US:
        print(f"missed: the bar is {BAR_US:.0f} us per token", file=sys.stderr)
        return 1
    return 0


@dataclass(slots=True)
class Seen:
    """Microseconds per token in each round; idle CPU of pool-managerd in ms per second."""

    ours_us: list[float] = field(default_factory=list)
    bare_us: list[float] = field(default_factory=list)
    epoll_us: list[float] = field(default_factory=list)
    idle_ms: float = 0.0


async def measured(directory: Path, load: Load, rounds: int) -> Seen:
    """Runs pool-managerd and its peers in turns."""
    orchestratord, address = await start_orchestratord(directory)
    host = await _start_host(directory, address, load)
    seen = Seen()
    try:
        async with AsyncClient(address) as client:
            await _until_ready(client)
            before_s, began_s = cpu_s(host.pid), time.monotonic()
            await asyncio.sleep(WARM_S)
            seen.idle_ms = 1000 * (cpu_s(host.pid) - before_s) / (time.monotonic() - began_s)
            for _ in range(rounds):
                seen.ours_us.append(await _round(client, host.pid, load))
                seen.bare_us.append(await _bare(directory, load))
                seen.epoll_us.append(await _bare(directory, load, "--epoll"))
    finally:
        for child in (host, orchestratord):
            await child.stop()
    return seen


async def _start_host(directory: Path, address: str, load: Load) -> Child:
    config = directory / "pool-managerd.toml"
    config.write_text(
        TOML.format(
            orchestrator=address,
            model=MODEL,
            python=sys.executable,
            server=SERVER,
            slots=load.streams,
            rate=load.rate,
        ),
        encoding="utf-8",
    )
    arguments = ["pool_managerd", "--config", str(config)]
    return await Child.start("pool-managerd", arguments, directory)


async def _until_ready(client: AsyncClient) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            if any(pool.state == "READY" for pool in await client.pools()):
                return
            await asyncio.sleep(0.1)


async def _round(client: AsyncClient, pid: int, load: Load) -> float:
    """One round with fresh jobs."""
    counts = [0] * load.streams
    sampling = Sampling(max_tokens=ENDLESS)
    streams = [
        client.run(model_id=MODEL, prompt=f"Hi {n}", sampling=sampling) for n in range(load.streams)
    ]
    tasks = [asyncio.create_task(_count(one, counts, n)) for n, one in enumerate(streams)]
    try:
        await asyncio.sleep(WARM_S)
        tokens, spent_s = sum(counts), cpu_s(pid)
        await asyncio.sleep(load.seconds)
        tokens, spent_s = sum(counts) - tokens, cpu_s(pid) - spent_s
    finally:
        for stream in streams:
            await client.cancel(stream.job_id)
        await asyncio.gather(*tasks)
    return 1e6 * spent_s / tokens


async def _count(stream: JobStream, counts: list[int], number: int) -> None:
    async for event in stream:
        if isinstance(event, Tokens):
            counts[number] += len(event.token_ids)


async def _bare(directory: Path, load: Load, *kind: str) -> float:
    """The same of a peer, on a server of its own."""
    async with _server(directory, load) as url:
        arguments = ["benchmarks.load.sse_bare", url, "--streams", str(load.streams), *kind]
        peer = await Child.start("sse-bare", arguments, directory)
        try:
            await peer.answer()
            await asyncio.sleep(WARM_S)
            tokens, spent_s = (await peer.ask("totals"))["tokens"], cpu_s(peer.pid)
            await asyncio.sleep(load.seconds)
            spent_s = cpu_s(peer.pid) - spent_s
            tokens = (await peer.ask("totals"))["tokens"] - tokens
        finally:
            await peer.stop()
    return 1e6 * spent_s / int(tokens)


@contextlib.asynccontextmanager
async def _server(directory: Path, load: Load) -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["benchmarks.load.llama_engine", "--port", str(port)]
    arguments += ["--slots", str(load.streams), "--rate", str(load.rate)]
    server = await Child.start("llama-engine", arguments, directory)
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop()


def _all(values_us: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values_us)


if __name__ == "__main__":
    sys.exit(main())
