"""CPU per relayed token of other routers beside orchestratord.

    python -m benchmarks.peers [--streams 64,200] [--only smg,vllm-router,litellm] [--install]

`--install` makes an environment for each peer under `.build/peers` from the package index. The
peers relay server-sent events of a mock engine that speaks OpenAI's protocol, 50 tokens a second on
each stream; orchestratord relays the same tokens from played hosts, which stand for engine and
pool-managerd. CPU is that of the router's process and its children. Everything is on loopback. The
orchestrator_core is that of the present folder: `make bench-peers` takes the compiled one.
"""

import argparse
import asyncio
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.load.processes import Child, ProcessError, cpu_s, free_port
from benchmarks.machine import run_on_machine
from benchmarks.relay import Case, Figures, Mark, Timing, best_of, measure

HOME = Path(__file__).resolve().parents[1] / ".build" / "peers"
INSTALL_TIMEOUT_S = 900
START_TIMEOUT_S = 90.0
LITELLM_CONFIG = """\
model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{engine}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A router of others: what to install, and how to start it."""

    name: str
    package: str
    arguments: Callable[[int, int, Path], list[str]]
    env: tuple[tuple[str, str], ...] = ()


def _smg(engine: int, port: int, _: Path) -> list[str]:
    metrics = f"--prometheus-port={free_port()}"
    return ["launch", *_common(engine, port), metrics, "--policy=round_robin"]


def _vllm(engine: int, port: int, _: Path) -> list[str]:
    metrics = f"--prometheus-port={free_port()}"
    return [*_common(engine, port), metrics, "--policy=round_robin"]


def _common(engine: int, port: int) -> list[str]:
    worker = f"http://127.0.0.1:{engine}"
    return ["--worker-urls", worker, "--host=127.0.0.1", f"--port={port}"]


def _litellm(engine: int, port: int, directory: Path) -> list[str]:
    config = directory / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(engine=engine))
    return [f"--config={config}", "--host=127.0.0.1", f"--port={port}", "--num_workers=1"]


PEERS = (
    Peer("smg", "smg", _smg),
    Peer("vllm-router", "vllm-router", _vllm),
    Peer(
        "litellm",
        "litellm[proxy]",
        _litellm,
        # It refuses to start without a master key; it listens on loopback here.
        (("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true"),),
    ),
)


def install(peer: Peer) -> None:
    """Makes the peer's environment. Raises `subprocess.SubprocessError`."""
    where = HOME / peer.name
    if (where / "bin" / peer.name).exists():
        return
    for command in (
        [sys.executable, "-m", "venv", str(where)],
        [str(where / "bin" / "pip"), "install", "--quiet", peer.package],
    ):
        subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)  # noqa: S603 - ours


def version(peer: Peer) -> str:
    """Installed version."""
    command = [str(HOME / peer.name / "bin" / "pip"), "show", peer.name]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
    return next((x[9:] for x in told.splitlines() if x.startswith("Version: ")), "?")


async def until_open(child: Child, port: int) -> None:
    """Waits until a router listens. Raises `ProcessError`."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and child.process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)
        else:
            writer.close()
            # Routers look at their engines before they use them.
            await asyncio.sleep(3.0)
            return
    raise ProcessError(f"{child.name} does not listen:\n{child.log_tail()}")


def tree_cpu_s(pid: int) -> float:
    """CPU of a process and of its present children."""
    family = [pid, *(it.pid for it in psutil.Process(pid).children(recursive=True))]
    return sum(cpu_s(it) for it in family)


async def play(peer: Peer, streams: int, timing: Timing) -> Figures:
    """One load on one peer. Raises `ProcessError`."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        engine = await Child.start("engine", ["benchmarks.load.engine"], directory)
        children = [engine]
        try:
            engine_port, port = int((await engine.answer())["port"]), free_port()
            program = [
                str((HOME / peer.name / "bin" / peer.name).absolute()),
                *peer.arguments(engine_port, port, directory),
            ]
            router = await Child.start_program(
                peer.name, program, directory, dict(peer.env), quiet=True
            )
            children.append(router)
            await until_open(router, port)
            readers = await Child.start(
                "readers", ["benchmarks.load.sse_readers", f"127.0.0.1:{port}"], directory
            )
            children.append(readers)
            await readers.answer()
            return await watch(router, readers, streams, timing)
        finally:
            for child in reversed(children):
                await child.stop()


async def watch(router: Child, readers: Child, streams: int, timing: Timing) -> Figures:
    """Opens the streams and looks at them in windows."""
    seconds = timing.warm_s + timing.windows * timing.window_s
    await readers.ask("open", jobs=streams, max_tokens=int((seconds + 60) * 50))
    await asyncio.sleep(timing.warm_s)
    marks = []
    for turn in range(timing.windows + 1):
        if turn:
            await asyncio.sleep(timing.window_s)
        told = await readers.ask("count")
        marks.append(
            Mark(
                time.monotonic(),
                tree_cpu_s(router.pid),
                told["tokens"],
                told["batches"],
                told["p50_ms"],
                told["p99_ms"],
            )
        )
    return Figures.of(marks, psutil.Process(router.pid).memory_info().rss, streams * 50.0)


def show(name: str, streams: int, played: list[Figures]) -> None:
    """Prints one line."""
    best = best_of(played)
    median_us = statistics.median(us for it in played for us in it.cpu_us)
    print(
        f"{name:28}{streams:8}{best.best_us:9.1f}{median_us:9.1f}{best.tokens_per_s:10.0f}"
        f"{best.p50_ms:9.2f}{best.p99_ms:9.2f}{best.rss_mib:7.0f}",
        flush=True,
    )


async def run(options: argparse.Namespace) -> int:
    """Prints the table; what cannot be installed or run is said with its error."""
    # Unlike our own processes a peer does not end with this one: it is stopped on the way out.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    peers = [peer for peer in PEERS if peer.name in options.only.split(",")]
    if options.install:
        for peer in list(peers):
            try:
                install(peer)
            except subprocess.SubprocessError as error:
                print(f"{peer.name}: cannot be installed: {error}")
                peers.remove(peer)
    print("python -m benchmarks.peers " + options.told)
    print(
        f"{'us of CPU per token':28}{'streams':>8}{'best':>9}{'median':>9}{'tokens/s':>10}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'MiB':>7}"
    )
    timing = Timing(options.warm, options.windows)
    for streams in map(int, options.streams.split(",")):
        await compare(peers, streams, timing, options.rounds)
    return 0


async def compare(peers: list[Peer], streams: int, timing: Timing, rounds: int) -> None:
    """Prints all routers under one load, in turns."""
    ours: dict[bool, list[Figures]] = {False: [], True: []}
    theirs: dict[str, list[Figures]] = {peer.name: [] for peer in peers}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for exchange, played in ours.items():
            case = Case(streams, exchange, 8, 1 if exchange else 8)
            played.append(await measure(case, timing, bare=False))
        for peer in peers:
            try:
                theirs[peer.name].append(await play(peer, streams, timing))
            except ProcessError as error:
                failed[peer.name] = str(error)
    for exchange, played in ours.items():
        name = f"orchestratord, {'Exchange' if exchange else 'a call a job'}"
        show(name, streams, played)
    for peer in peers:
        if theirs[peer.name]:
            show(f"{peer.name} {version(peer)}", streams, theirs[peer.name])
        else:
            print(f"{peer.name} {version(peer)}: does not run: {failed[peer.name]}")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--streams", default="64,200")
    parser.add_argument("--only", default=",".join(peer.name for peer in PEERS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm", type=float, default=4.0, help="seconds")
    parser.add_argument("--windows", type=int, default=6, help="of two seconds each")
    parser.add_argument("--install", action="store_true", help="install what is missing first")
    options = parser.parse_args(argv)
    options.told = " ".join(sys.argv[1:] if argv is None else argv)
    with run_on_machine():
        return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
