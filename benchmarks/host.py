"""CPU per token in pool-managerd, beside bare readers of the same streams.

    python -m benchmarks.host [--seconds 10] [--rounds 3] [--pools 1 8] [--slots 8] [--rate 50]
    python -m benchmarks.host --embedded [--seconds 10] [--rounds 3] [--slots 8]

The real orchestratord and pool-managerd, whose pools each launch a llama-server without a model
that streams at `--rate` tokens per second in every slot, unsynchronised; one client reads all jobs.
One run for each number of `--pools`. CPU is user and system time of the pool-managerd process
alone. The peers read one such server with as many slots in all, and only count events: aiohttp on
uvloop, and a loop of epoll and recv. All run in turns; the best round of each counts, because noise
only adds. With `--embedded` the engine is llama.cpp with the tiny model, as fast as it can, and
there are no peers.
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
from pool_managerd.models.tiny_gguf import write_tiny_model

BAR_US = 30.0
READY_TIMEOUT_S = 60.0
WARM_S = 2.0
MODEL = "paced"
ENDLESS = 500_000
EMBEDDED_TOKENS = 1_500
SERVER = Path(__file__).resolve().parent / "load" / "llama_engine.py"
HOST = """
orchestrator = "{orchestrator}"
listen = "127.0.0.1:0"
devices = "cpu"
log_level = "warning"
"""
LAUNCHED = """
[[pools]]
pool_id = "p{number}"
[pools.engine]
kind = "llama_server"
model_id = "{model}"
[pools.engine.launch]
command = [
  "{python}", "-S", "{server}", "--port", "{{port}}", "--slots", "{slots}", "--rate", "{rate}",
]
"""


EMBEDDED = """
[[pools]]
pool_id = "p0"
[pools.engine]
kind = "embedded"
model_path = "{path}"
model_id = "{model}"
slots = {slots}
ctx_per_slot = 2048
"""


@dataclass(frozen=True, slots=True)
class Load:
    """Pools, slots of each, tokens per second of each slot, and seconds of a round."""

    pools: int
    slots: int
    rate: float
    seconds: float
    embedded: bool = False

    @property
    def streams(self) -> int:
        """Streams at a time: every slot has one."""
        return self.pools * self.slots


def main() -> int:
    """Prints the figures; exit 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pools", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--embedded", action="store_true")
    arguments = parser.parse_args()
    print(f"python -m benchmarks.host {' '.join(sys.argv[1:])}")
    missed = False
    with run_on_machine():
        for pools in [1] if arguments.embedded else arguments.pools:
            load = Load(
                pools, arguments.slots, arguments.rate, arguments.seconds, arguments.embedded
            )
            with tempfile.TemporaryDirectory(prefix="llama-orch-host-") as directory:
                seen = asyncio.run(measured(Path(directory), load, arguments.rounds))
            missed |= told(load, seen)
    return 1 if missed else 0


def told(load: Load, seen: "Seen") -> bool:
    """Prints the figures of one load; true when it misses the bar."""
    best_us = min(seen.ours_us)
    speed = "as fast as it can" if load.embedded else f"{load.rate:g} tokens/s"
    print(f"\n{load.pools} x {load.slots} slots, {speed}: {seen.tokens_per_s:,.0f} tokens/s")
    print(f"idle pool-managerd: {seen.idle_ms:.1f} ms of CPU per second")
    print(f"pool-managerd: {_all(seen.ours_us)} us of CPU per token, idle time included")
    if seen.bare_us:
        print(f"bare aiohttp:  {_all(seen.bare_us)} us of CPU per token")
        print(f"epoll, recv:   {_all(seen.epoll_us)} us of CPU per token")
        times = (best_us / min(seen.bare_us), best_us / min(seen.epoll_us))
        print(f"best: {best_us:.1f} us, {times[0]:.2f} x aiohttp, {times[1]:.2f} x epoll")
    if best_us > BAR_US:
        print(f"missed: the bar is {BAR_US:.0f} us per token", file=sys.stderr, flush=True)
    return best_us > BAR_US


@dataclass(slots=True)
class Seen:
    """Microseconds per token in each round; idle CPU of pool-managerd in ms per second.

    `tokens_per_s` is of pool-managerd's last round.
    """

    ours_us: list[float] = field(default_factory=list)
    bare_us: list[float] = field(default_factory=list)
    epoll_us: list[float] = field(default_factory=list)
    idle_ms: float = 0.0
    tokens_per_s: float = 0.0


async def measured(directory: Path, load: Load, rounds: int) -> Seen:
    """Runs pool-managerd and its peers in turns."""
    orchestratord, address = await start_orchestratord(directory)
    host = await _start_host(directory, address, load)
    seen = Seen()
    try:
        async with AsyncClient(address) as client:
            await _until_ready(client, load.pools)
            before_s, began_s = cpu_s(host.pid), time.monotonic()
            await asyncio.sleep(WARM_S)
            seen.idle_ms = 1000 * (cpu_s(host.pid) - before_s) / (time.monotonic() - began_s)
            for _ in range(rounds):
                spent_us, seen.tokens_per_s = await _round(client, host.pid, load)
                seen.ours_us.append(spent_us)
                if load.embedded:
                    continue
                seen.bare_us.append(await _bare(directory, load))
                seen.epoll_us.append(await _bare(directory, load, "--epoll"))
    finally:
        for child in (host, orchestratord):
            await child.stop()
    return seen


async def _start_host(directory: Path, address: str, load: Load) -> Child:
    config = directory / "pool-managerd.toml"
    pools = "".join(_pool(directory, number, load) for number in range(load.pools))
    config.write_text(HOST.format(orchestrator=address) + pools, encoding="utf-8")
    arguments = ["pool_managerd", "--config", str(config)]
    return await Child.start("pool-managerd", arguments, directory)


def _pool(directory: Path, number: int, load: Load) -> str:
    if load.embedded:
        model = directory / "tiny.gguf"
        write_tiny_model(model)
        return EMBEDDED.format(model=MODEL, path=model, slots=load.slots)
    return LAUNCHED.format(
        number=number,
        model=MODEL,
        python=sys.executable,
        server=SERVER,
        slots=load.slots,
        rate=load.rate,
    )


async def _until_ready(client: AsyncClient, pools: int) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            if sum(pool.state == "READY" for pool in await client.pools()) >= pools:
                return
            await asyncio.sleep(0.1)


async def _round(client: AsyncClient, pid: int, load: Load) -> tuple[float, float]:
    """One round with fresh jobs: microseconds per token, and tokens per second."""
    counts, over = [0] * load.streams, asyncio.Event()
    running = {}
    sampling = Sampling(max_tokens=ENDLESS)
    if load.embedded:
        options = {"ignore_eos": True}
        sampling = Sampling(max_tokens=EMBEDDED_TOKENS, seed=1, engine_options=options)

    async def keep_busy(number: int) -> None:
        while not over.is_set():
            stream = client.run(model_id=MODEL, prompt=f"Hi {number}", sampling=sampling)
            running[number] = stream
            async for event in stream:
                if isinstance(event, Tokens):
                    counts[number] += len(event.token_ids)

    tasks = [asyncio.create_task(keep_busy(number)) for number in range(load.streams)]
    try:
        await asyncio.sleep(WARM_S)
        tokens, spent_s = sum(counts), cpu_s(pid)
        await asyncio.sleep(load.seconds)
        tokens, spent_s = sum(counts) - tokens, cpu_s(pid) - spent_s
    finally:
        over.set()
        for stream in running.values():
            await client.cancel(stream.job_id)
        await asyncio.gather(*tasks)
    return 1e6 * spent_s / tokens, tokens / load.seconds


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
