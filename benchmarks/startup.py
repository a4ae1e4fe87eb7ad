"""How soon the services and the command answer after they are started.

    python -m benchmarks.startup [--rounds 5] [--jobs 20000]

From the start of the process to the first answer: health SERVING for orchestratord, over an empty
journal and over one with waiting jobs that it has to take up again; the pool READY at orchestratord
for pool-managerd with a mock engine; the end of the process for `llorch`. Beside them Python that
does nothing, and a bare grpc.aio server. Processor time is told too, as it depends less on what
else runs. The median of the rounds.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table

from benchmarks.load.processes import Child, ProcessError, cpu_s, free_port
from benchmarks.machine import run_on_machine
from llamaorch_client import AsyncClient, LlamaOrchError

TIMEOUT_S = 120.0
ASK_EVERY_S = 0.002
IN_FLIGHT = 32
BARE = """
import asyncio, grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

async def main():
    server, serving = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(serving, server)
    server.add_insecure_port("{address}")
    await server.start()
    await serving.set("", health_pb2.HealthCheckResponse.SERVING)
    await server.wait_for_termination()

asyncio.run(main())
"""
ORCHESTRATOR = """listen = "{address}"
log_format = "json"
shutdown_grace_ms = 0
[queue]
capacity = 1000000
[store]
path = "{journal}"
"""
HOST = """orchestrator = "{address}"
listen = "127.0.0.1:0"
log_format = "json"
devices = "cpu"
[[pools]]
pool_id = "p0"
engine = {{ kind = "mock" }}
"""


@dataclass(frozen=True, slots=True)
class Took:
    """Milliseconds from the start of a process to its first answer, and of its processor."""

    wall_ms: float
    cpu_ms: float


async def serving(address: str) -> None:
    """Waits for health SERVING."""
    async with grpc.aio.insecure_channel(
        address, options=(("grpc.initial_reconnect_backoff_ms", 1),)
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await stub.Check(
                    health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=TIMEOUT_S
                )
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(ASK_EVERY_S)


async def ready(address: str) -> None:
    """Waits for a READY pool."""
    async with AsyncClient(address) as client:
        while True:
            with contextlib.suppress(LlamaOrchError):
                if any(pool.state == "READY" for pool in await client.pools()):
                    return
            await asyncio.sleep(ASK_EVERY_S)


async def until(
    started: Callable[[], Awaitable[Child]], answers: Callable[[], Coroutine[None, None, None]]
) -> Took:
    """Starts a process, waits for its answer, ends it."""
    began_s = time.perf_counter()
    child = await started()
    answered = asyncio.create_task(answers())
    over = asyncio.create_task(child.process.wait())
    try:
        await asyncio.wait((answered, over), timeout=TIMEOUT_S, return_when=FIRST_COMPLETED)
        if not answered.done():
            raise ProcessError(f"{child.name} does not answer:\n{child.log_tail()}")
        return Took(1e3 * (time.perf_counter() - began_s), 1e3 * cpu_s(child.pid))
    finally:
        answered.cancel()
        await child.stop()
        await asyncio.gather(answered, over, return_exceptions=True)


async def ends(*command: str) -> Took:
    """Runs a command to its end."""
    before, began_s = os.times(), time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    if await process.wait():
        raise RuntimeError(f"{command} failed")
    wall_ms, after = 1e3 * (time.perf_counter() - began_s), os.times()
    spent_s = after.children_user + after.children_system
    spent_s -= before.children_user + before.children_system
    return Took(wall_ms, 1e3 * spent_s)


class Places:
    """Where the processes of a run keep their files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def orchestrator(self, address: str, journal: str) -> Child:
        """Starts orchestratord on a journal."""
        return await self._start("orchestrator_core", ORCHESTRATOR, address, journal)

    async def host(self, address: str) -> Child:
        """Starts pool-managerd."""
        return await self._start("pool_managerd", HOST, address, "")

    async def bare(self, address: str) -> Child:
        """Starts a bare server."""
        program = [sys.executable, "-c", BARE.format(address=address)]
        return await Child.start_program("bare", program, self.root, quiet=True)

    async def _start(self, module: str, text: str, address: str, journal: str) -> Child:
        config = self.root / f"{module}.toml"
        config.write_text(text.format(address=address, journal=self.root / journal / "journal.db"))
        (self.root / journal).mkdir(exist_ok=True)
        return await Child.start(module, [module, "--config", str(config)], self.root)

    @asynccontextmanager
    async def running(self, journal: str) -> AsyncIterator[str]:
        """An orchestratord that serves; its address."""
        address = f"127.0.0.1:{free_port()}"
        child = await self.orchestrator(address, journal)
        try:
            await serving(address)
            yield address
        finally:
            await child.stop()


async def filled(places: Places, jobs: int) -> None:
    """Makes a journal `filled` of so many jobs, which wait for a host that has gone."""
    async with places.running("filled") as address:
        hosts = await Child.start("hosts", ["benchmarks.load.hosts", address], places.root)
        givers = await Child.start("givers", ["benchmarks.load.givers", address], places.root)
        try:
            await hosts.answer()
            await ready(address)
            await hosts.stop()
            await givers.answer()
            told = await givers.ask("fast", calls=jobs, in_flight=IN_FLIGHT)
            if told["errors"]:
                raise RuntimeError(f"calls failed: {told['kinds']}")
        finally:
            await givers.stop()
            await hosts.stop()


async def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    print("python -m benchmarks.startup " + options.told)
    with tempfile.TemporaryDirectory() as name:
        places = Places(Path(name))
        await filled(places, options.jobs)
        address = f"127.0.0.1:{free_port()}"
        took: dict[str, list[Took]] = {}

        def note(what: str, it: Took) -> None:
            took.setdefault(what, []).append(it)

        for number in range(options.rounds):
            note("Python, nothing", await ends(sys.executable, "-c", "pass"))
            bare = await until(lambda: places.bare(address), lambda: serving(address))
            note("bare grpc.aio server", bare)
            for what, journal in (
                ("orchestratord, empty journal", f"empty{number}"),
                (f"orchestratord, {options.jobs:,} waiting jobs", "filled"),
            ):
                started = _orchestrator(places, address, journal)
                note(what, await until(started, lambda: serving(address)))
            async with places.running(f"host{number}") as served:
                host = await until(_host(places, served), _ready(served))
                note("pool-managerd, its mock pool READY", host)
                note("llorch pools", await ends("llorch", "--server", served, "pools"))
            note("llorch --help", await ends("llorch", "--help"))
    table = Table("from the start to the first answer", "ms", "ms of processor")
    for what, each in took.items():
        wall_ms = statistics.median(it.wall_ms for it in each)
        cpu_ms = statistics.median(it.cpu_ms for it in each)
        table.add_row(what, f"{wall_ms:.0f}", f"{cpu_ms:.0f}")
    Console().print(table)
    return 0


def _orchestrator(places: Places, address: str, journal: str) -> Callable[[], Awaitable[Child]]:
    return lambda: places.orchestrator(address, journal)


def _host(places: Places, address: str) -> Callable[[], Awaitable[Child]]:
    return lambda: places.host(address)


def _ready(address: str) -> Callable[[], Coroutine[None, None, None]]:
    return lambda: ready(address)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=20_000)
    options = parser.parse_args(argv)
    options.told = " ".join(sys.argv[1:] if argv is None else argv)
    with run_on_machine():
        return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
