"""What full telemetry costs: CPU per Enqueue and per token, beside the same without any.

    python -m benchmarks.telemetry [--series 5] [--rounds 40] [--calls 300] [--token-series 6]
                                   [--token-seconds 20] [--only tokens|enqueue] [--quick]

Two stacks run at the same time: one exports spans and metrics to an OTLP receiver and logs every
line; the other does none of it and logs errors alone. Both relay the same paced streams over the
same time. Then short bursts of Enqueue go to the one and the other in turns. What counts is CPU of
the processes: whatever else the machine does is in both. Two processes of the same program may
differ by a tenth for as long as they live, so each has several series with new processes: of those
of Enqueue the median counts, of tokens the mean and its standard error, and all four services share
one processor. What telemetry takes by the second and for a scrape is shown by itself. How often it
is called per token is counted by `tests/integration/telemetry/test_cost_per_token.py`.
"""

import argparse
import asyncio
import math
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.core import Verdicts
from benchmarks.enqueue import made
from benchmarks.load.processes import Child, cpu_s, free_port, start_sink
from benchmarks.machine import run_on_machine
from llamaorch_client import AsyncClient, LlamaOrchError, Sampling, Tokens

ENQUEUE_BAR_PERCENT = 15.0
TOKEN_BAR_US = 1.0
READY_TIMEOUT_S = 60.0
WARM_S = 3.0
WINDOW_S = 2.0
# What services take idle is looked at for a quarter of the time.
IDLE_SHARE = 4
SCRAPES = 10
IN_FLIGHT = 32
STREAMS = 8
PACE = {"token_interval_ms": 5, "token_count": 1_000_000}
ORCHESTRATOR = """listen = "{address}"
metrics_listen = "{metrics}"
log_level = "{level}"
log_format = "json"
shutdown_grace_ms = 0
[queue]
capacity = 1000000
[jobs]
idempotency_max = 1000000
[store]
path = "{journal}"
"""
HOST = """orchestrator = "{address}"
listen = "127.0.0.1:0"
metrics_listen = "{metrics}"
log_level = "{level}"
log_format = "json"
devices = "cpu"
[[pools]]
pool_id = "p0"
engine = {{ kind = "mock", slots = {slots} }}
"""


@dataclass(frozen=True, slots=True)
class Stack:
    """Both services with telemetry, or without."""

    address: str
    metrics: tuple[str, ...]
    orchestrator: Child
    host: Child

    def cpu_s(self) -> float:
        """Seconds of CPU that both have taken."""
        return cpu_s(self.orchestrator.pid) + cpu_s(self.host.pid)


@asynccontextmanager
async def running(directory: Path, otlp: str, *, relays: bool) -> AsyncIterator[Stack]:
    """A stack; with an OTLP endpoint it has all telemetry, without one none.

    Unless it `relays`, a stand-in for the host keeps one job for ever, so that all others wait.
    """
    made(directory)
    address = f"127.0.0.1:{free_port()}"
    metrics = [f"127.0.0.1:{free_port()}" if otlp else "" for _ in range(2)]
    level = "info" if otlp else "error"
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp} if otlp else {}
    common = {"address": address, "level": level}
    urls = tuple(f"http://{it}/metrics" for it in metrics[: 1 + relays] if it)
    children = []
    try:
        journal = directory / "journal.db"
        text = ORCHESTRATOR.format(metrics=metrics[0], journal=journal, **common)
        children.append(await _start("orchestrator_core", directory, text, env))
        async with AsyncClient(address) as client:
            await _pools(client)
            if relays:
                text = HOST.format(metrics=metrics[1], slots=STREAMS, **common)
                children.append(await _start("pool_managerd", directory, text, env))
            else:
                arguments = ["benchmarks.load.hosts", address, "--rate=0.001"]
                children.append(await Child.start("hosts", arguments, directory))
                await children[-1].answer()
            await _until_ready(client)
        yield Stack(address, urls, *children)
    finally:
        for child in reversed(children):
            await child.stop()


@asynccontextmanager
async def stacks(
    directory: Path, otlp: str, *, relays: bool, off_first: bool = False
) -> AsyncIterator[dict[str, Stack]]:
    """Two, `on` with all telemetry and `off` with none, in the order in which they were started."""
    made(directory)
    endpoints = {"off": "", "on": otlp} if off_first else {"on": otlp, "off": ""}
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(
                running(directory / name, endpoint, relays=relays)
            )
            for name, endpoint in endpoints.items()
        }


async def _start(module: str, directory: Path, text: str, env: dict[str, str]) -> Child:
    config = directory / f"{module}.toml"
    config.write_text(text, encoding="utf-8")
    return await Child.start(module, [module, "--config", str(config)], directory, env)


async def _until_ready(client: AsyncClient) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            if "READY" in await _pools(client):
                return
            await asyncio.sleep(0.1)


async def _pools(client: AsyncClient) -> list[str]:
    """The states of all pools, once the orchestrator answers."""
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            try:
                return [pool.state for pool in await client.pools()]
            except LlamaOrchError:
                await asyncio.sleep(0.1)


async def scrape(it: Stack) -> None:
    """Scrapes both services once, as Prometheus does."""
    async with aiohttp.ClientSession() as session:
        for url in it.metrics:
            async with session.get(url) as answer:
                await answer.read()


async def scrapes(it: Stack) -> float:
    """Milliseconds of CPU that a scrape of both services takes."""
    before_s = it.cpu_s()
    for _ in range(SCRAPES):
        await scrape(it)
    return 1000 * (it.cpu_s() - before_s) / SCRAPES


async def enqueues(
    both: dict[str, Stack], directory: Path, options: argparse.Namespace
) -> tuple[float, float]:
    """Microseconds of CPU that an Enqueue takes orchestratord, with telemetry and without."""
    on, off = both["on"], both["off"]
    async with AsyncExitStack() as stack:
        clients, before_s = {}, {}
        for turn, it in enumerate((on, off)):
            name = f"givers{turn}"
            client = await Child.start(name, ["benchmarks.load.givers", it.address], directory)
            stack.push_async_callback(client.stop)
            await client.answer()
            await client.ask("warm_up")
            clients[it.address], before_s[it.address] = client, cpu_s(it.orchestrator.pid)
        for turn in range(options.rounds):
            for it in (on, off) if turn % 2 else (off, on):
                told = await clients[it.address].ask(
                    "fast", calls=options.calls, in_flight=IN_FLIGHT
                )
                if told["errors"]:
                    raise RuntimeError(f"calls failed: {told['kinds']}")
        # Exporters work on for a while: their share belongs to these calls.
        await asyncio.sleep(options.settle_s)
        calls = options.rounds * options.calls
        with_us, without_us = (
            1e6 * (cpu_s(it.orchestrator.pid) - before_s[it.address]) / calls for it in (on, off)
        )
        return with_us, without_us


async def tokens(both: dict[str, Stack], seconds: float) -> "Difference":
    """What a token takes of both stacks, less what they take idle: medians of short windows.

    A neighbour of this machine spoils some of them, and not a whole series.
    """
    idle_s = await _spent(both, seconds / IDLE_SHARE)
    async with AsyncExitStack() as stack:
        counts = {name: [0] for name in both}
        for name, each in both.items():
            client = await stack.enter_async_context(AsyncClient(each.address))
            for number in range(STREAMS):
                task = asyncio.create_task(_count(client, f"Hi {number}", counts[name]))
                stack.callback(task.cancel)
        await asyncio.sleep(WARM_S)
        first, us = counts["on"][0], dict[str, list[float]](on=[], off=[])
        for _ in range(max(1, round(seconds / WINDOW_S))):
            before = {name: count[0] for name, count in counts.items()}
            busy_s = await _spent(both, WINDOW_S)
            for name, count in counts.items():
                read = (count[0] - before[name]) / WINDOW_S
                if not read:
                    raise RuntimeError("no token came in a window")
                us[name].append(1e6 * (busy_s[name] - idle_s[name]) / read)
        rate = (counts["on"][0] - first) / (len(us["on"]) * WINDOW_S)
    more_us = statistics.median(on - off for on, off in zip(us["on"], us["off"], strict=True))
    idle_ms = 1000 * (idle_s["on"] - idle_s["off"])
    return Difference(more_us, statistics.median(us["off"]), idle_ms, rate)


@dataclass(frozen=True, slots=True)
class Difference:
    """One pair of stacks: microseconds per token, and what telemetry takes idle, in ms a second."""

    more_us: float
    off_us: float
    idle_ms: float
    tokens_per_s: float

    def __str__(self) -> str:
        return (
            f"token without telemetry {self.off_us:6.1f} us of CPU, with all {self.more_us:+5.1f}; "
            f"{self.tokens_per_s:,.0f} tokens/s; "
            f"telemetry of idle services {self.idle_ms:+.2f} ms/s"
        )


async def _spent(both: dict[str, Stack], seconds: float) -> dict[str, float]:
    """Seconds of CPU that each stack takes a second, over the same time."""
    before_s = {name: each.cpu_s() for name, each in both.items()}
    await asyncio.sleep(seconds)
    return {name: (each.cpu_s() - before_s[name]) / seconds for name, each in both.items()}


@contextmanager
def on_processors(*wanted: int) -> Iterator[None]:
    """What this thread starts meanwhile runs on these processors alone, if there are as many.

    Four services that share one take turns there: none has a better place than another.
    """
    all_of_them = os.sched_getaffinity(0)
    some = {sorted(all_of_them)[number] for number in wanted if number < len(all_of_them)}
    os.sched_setaffinity(0, some or all_of_them)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


async def token_series(root: Path, endpoint: str, options: argparse.Namespace) -> float:
    """Microseconds of CPU by which telemetry makes a token dearer: at most, by the noise.

    The mean over series and twice its standard error. Each series is two pairs of new processes, of
    which in the one telemetry's were started first, and in the other those without: which were
    first makes a difference, too.
    """
    seen = []
    for number in range(2 * options.token_series):
        directory, off_first = root / f"tokens-{number}", bool(number % 2)
        async with AsyncExitStack() as stack:
            with on_processors(0):
                pair = stacks(directory, endpoint, relays=True, off_first=off_first)
                both = await stack.enter_async_context(pair)
            with on_processors(1):
                if not number:
                    print(f"a scrape of both services {await scrapes(both['on']):6.1f} ms of CPU")
                seen.append(await tokens(both, options.token_seconds))
        print(seen[-1], flush=True)
    pairs = zip(seen[::2], seen[1::2], strict=True)
    more_us = [statistics.mean(it.more_us for it in pair) for pair in pairs]
    mean_us = statistics.mean(more_us)
    error_us = statistics.stdev(more_us) / len(more_us) ** 0.5 if len(more_us) > 1 else math.inf
    print(f"token   by telemetry {mean_us:+.2f} us, standard error {error_us:.2f}")
    return mean_us + 2 * error_us


async def _count(client: AsyncClient, prompt: str, count: list[int]) -> None:
    """Reads one stream after another until it is cancelled: each ends where its context does."""
    sampling = Sampling(engine_options={"mock": PACE})
    while True:
        async for event in client.run(model_id="mock", prompt=prompt, sampling=sampling):
            if isinstance(event, Tokens):
                count[0] += len(event.pieces)


async def run(options: argparse.Namespace) -> int:
    """Prints the figures; 1 when a bar was missed and that was asked for."""
    print("python -m benchmarks.telemetry " + options.told)
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sink, endpoint = await start_sink(root)
        try:
            if "tokens" in options.only:
                most_us = await token_series(root, endpoint, options)
                verdicts.judge("us of CPU more per token, at most", most_us, TOKEN_BAR_US)
            if "enqueue" in options.only:
                more = []
                for number in range(options.series):
                    directory = root / f"enqueue-{number}"
                    async with stacks(directory, endpoint, relays=False) as both:
                        with_us, without_us = await enqueues(both, directory, options)
                    more.append(100 * (with_us / without_us - 1))
                    print(
                        f"Enqueue with all telemetry {with_us:6.0f} us of CPU, "
                        f"without {without_us:6.0f}: {more[-1]:+.1f} %",
                        flush=True,
                    )
                verdicts.judge(
                    "% more CPU per Enqueue", statistics.median(more), ENQUEUE_BAR_PERCENT
                )
        finally:
            await sink.stop()
    return 1 if verdicts.missed and options.strict else 0


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--series", type=int, default=5, help="of Enqueue, with new processes")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of bursts in a series")
    parser.add_argument("--calls", type=int, default=300, help="of Enqueue in a burst")
    parser.add_argument("--token-series", type=int, default=6, help="of tokens, likewise")
    parser.add_argument("--token-seconds", type=float, default=20.0, help="of half a series")
    parser.add_argument(
        "--only", nargs="*", choices=("tokens", "enqueue"), default=("tokens", "enqueue")
    )
    parser.add_argument("--settle-s", type=float, default=6.0, help="pause after each series")
    parser.add_argument("--quick", action="store_true", help="shows that it works, no more")
    parser.add_argument("--strict", action="store_true", help="fail when a bar is missed")
    options = parser.parse_args(argv)
    options.told = " ".join(sys.argv[1:] if argv is None else argv)
    if options.quick:
        options.rounds, options.calls, options.token_seconds, options.settle_s = 2, 50, 2, 0.1
        options.series = options.token_series = 1
    with run_on_machine():
        return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
