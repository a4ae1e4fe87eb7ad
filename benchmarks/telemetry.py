"""What full telemetry costs: CPU per Enqueue and per token, beside the same without any.

    python -m benchmarks.telemetry [--series 5] [--rounds 40] [--calls 300] [--windows 20] [--quick]

Two stacks run at the same time on this machine: one exports spans and metrics to an OTLP receiver
and logs every line; the other does none of it and logs errors alone. Both relay the same paced
streams, beside a twin of the second that shows what such a difference is worth, and are looked at
over the same windows, of which the median counts; what telemetry does per token is counted by
`tests/integration/telemetry/test_cost_per_token.py`. Then short bursts of Enqueue go to the one and
the other in turns. What counts is CPU of the processes:
whatever else the machine does is in both. Two processes of the same program may differ by a tenth
for as long as they live, so Enqueue has several series with new processes, of which the median
counts. What a scrape costs, and not a token, is shown by itself.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
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
async def stacks(directory: Path, otlp: str, *, relays: bool) -> AsyncIterator[tuple[Stack, Stack]]:
    """One with all telemetry, and one with none."""
    made(directory)
    async with (
        running(directory / "on", otlp, relays=relays) as on,
        running(directory / "off", "", relays=relays) as off,
    ):
        yield on, off


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
    on: Stack, off: Stack, directory: Path, options: argparse.Namespace
) -> tuple[float, float]:
    """Microseconds of CPU that an Enqueue takes orchestratord, with telemetry and without."""
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


async def tokens(it: dict[str, Stack], windows: int) -> tuple[float, float]:
    """Microseconds of CPU by which a token costs more than in the last stack, medians of windows.

    First with telemetry, then without: by so much two stacks of the same program differ. What each
    takes without any token, by the second, is told by itself.
    """
    idle = await _idle(it, windows * WINDOW_S / 4)
    async with AsyncExitStack() as stack:
        counts = {name: [0] for name in it}
        for name, each in it.items():
            client = await stack.enter_async_context(AsyncClient(each.address))
            for number in range(STREAMS):
                task = asyncio.create_task(_count(client, f"Hi {number}", counts[name]))
                stack.callback(task.cancel)
        await asyncio.sleep(WARM_S)
        seen: dict[str, list[float]] = {name: [] for name in it}
        for _ in range(windows):
            before = {name: (each.cpu_s(), counts[name][0]) for name, each in it.items()}
            await asyncio.sleep(WINDOW_S)
            for name, (spent_s, read) in before.items():
                took_s = it[name].cpu_s() - spent_s - WINDOW_S * idle[name]
                taken = counts[name][0] - read
                if not taken:
                    raise RuntimeError("no token came in a window")
                seen[name].append(1e6 * took_s / taken)
    for name, us in seen.items():
        print(f"token   {name:20}{statistics.median(us):8.1f} us of CPU, both services")
    first, second, last = seen.values()
    return _more(first, last), _more(second, last)


async def _idle(it: dict[str, Stack], window_s: float) -> dict[str, float]:
    """Seconds of CPU that each stack takes a second while nothing happens."""
    before_s = {name: each.cpu_s() for name, each in it.items()}
    await asyncio.sleep(window_s)
    idle = {name: (each.cpu_s() - before_s[name]) / window_s for name, each in it.items()}
    for name, rate in idle.items():
        print(f"idle    {name:20}{1000 * rate:8.1f} ms of CPU a second, both services")
    return idle


def _more(these: list[float], those: list[float]) -> float:
    return statistics.median(here - there for here, there in zip(these, those, strict=True))


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
                other = running(root / "other", "", relays=True)
                both = stacks(root / "tokens", endpoint, relays=True)
                async with both as (on, off), other as twin:
                    print(f"a scrape of both services {await scrapes(on):6.1f} ms of CPU")
                    it = {"with all telemetry": on, "without": twin, "without, its twin": off}
                    more_us, noise_us = await tokens(it, options.windows)
                print(
                    f"token   by telemetry {more_us:+.1f} us, from twin to twin {noise_us:+.1f} us"
                )
                verdicts.judge("us of CPU more per token", more_us, TOKEN_BAR_US)
            if "enqueue" in options.only:
                more = []
                for number in range(options.series):
                    directory = root / f"enqueue-{number}"
                    async with stacks(directory, endpoint, relays=False) as (on, off):
                        with_us, without_us = await enqueues(on, off, directory, options)
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
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument(
        "--only", nargs="*", choices=("tokens", "enqueue"), default=("tokens", "enqueue")
    )
    parser.add_argument("--settle-s", type=float, default=6.0, help="pause after each series")
    parser.add_argument("--quick", action="store_true", help="shows that it works, no more")
    parser.add_argument("--strict", action="store_true", help="fail when a bar is missed")
    options = parser.parse_args(argv)
    options.told = " ".join(sys.argv[1:] if argv is None else argv)
    if options.quick:
        options.rounds, options.calls, options.windows, options.settle_s = 2, 50, 2, 0.1
        options.series = 1
    with run_on_machine():
        return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
