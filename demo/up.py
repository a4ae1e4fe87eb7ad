"""Both services in the foreground until Ctrl-C: `make up`, MODEL=/path/to/model.gguf if given."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from demo.services import PoolOptions, ServiceError, Stack, StackOptions

LISTEN = "127.0.0.1:7070"
METRICS_LISTEN = "127.0.0.1:7072"


async def up(options: StackOptions) -> int:
    """Runs until SIGINT or SIGTERM; returns the exit code."""
    out = sys.stdout
    stack = Stack(options)
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    asked_task = asyncio.create_task(asked.wait())
    start = asyncio.create_task(stack.start())
    try:
        # Loading a model may take minutes.
        await asyncio.wait([asked_task, start], return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            return 1
        await start
        server = "" if stack.address == LISTEN else f"--server {stack.address} "
        out.write(
            f"orchestratord listens on {stack.address}, model {options.model_id!r} is ready.\n"
            f"{_cut(stack)}"
            f"Status page: http://127.0.0.1:{stack.metrics_port}/\n"
            f"Logs, journal and flight recording: {options.directory}\n"
            f"Try:  .venv/bin/llorch {server}run --model {options.model_id} 'Once upon a time'\n"
            f"      .venv/bin/llorch {server}pools\nCtrl-C stops both.\n"
        )
        out.flush()
        ended = [
            asyncio.create_task(service.process.wait())
            for service in (stack.orchestrator, stack.pool_manager)
        ]
        await asyncio.wait([asked_task, *ended], return_when=asyncio.FIRST_COMPLETED)
        if not asked.is_set():
            out.write("A service ended by itself:\n")
            for service in (stack.orchestrator, stack.pool_manager):
                out.write(f"--- {service.name}\n{service.log_tail()}\n")
        out.write("Stopping; what runs may finish.\n")
        out.flush()
    finally:
        start.cancel()
        await asyncio.wait([start])
        codes = await stack.stop()
    return 0 if asked.is_set() and codes == (0, 0) else 1


def _cut(stack: Stack) -> str:
    """What the pool says of a CTX that its model does not have."""
    told = stack.pool_manager.events.get("context_cut")
    return "" if told is None else f"{str(told['human']).replace('ctx_per_slot', 'CTX')}\n"


def _threads(model: Path | None) -> int:
    """The tiny model is fastest on one thread; a real one wants the cores."""
    return 1 if model is None else max(1, (os.cpu_count() or 1) - 1)


def _in_use(address: str) -> bool:
    """True when somebody listens there already."""
    host, _, port = address.rpartition(":")
    if port == "0":
        return False
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text} must be HOST:PORT, such as {LISTEN}")
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="GGUF file; default: a tiny random model")
    parser.add_argument("--model-id", help="name that jobs ask for; default: the file's name")
    parser.add_argument(
        "--listen", type=_address, default=LISTEN, help=f"address, default {LISTEN}"
    )
    parser.add_argument(
        "--metrics-listen",
        type=_address,
        default=METRICS_LISTEN,
        help=f"address of the status page and the metrics, default {METRICS_LISTEN}",
    )
    parser.add_argument("--slots", type=_positive, default=2, help="generations at a time (2)")
    parser.add_argument("--ctx", type=_positive, default=2048, help="context of a slot (2048)")
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of the engine; default 1, with a model all cores but one",
    )
    parser.add_argument("--devices", choices=("cpu", "nvml"), default="cpu")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers on the GPU, -1 for all")
    parser.add_argument("--directory", type=Path, default=Path(".demo/up"))
    arguments = parser.parse_args()
    model = arguments.model
    if model is not None and not model.is_file():
        sys.stderr.write(f"{model} is not a file; give the path of a GGUF model\n")
        return 2
    for address in (arguments.listen, arguments.metrics_listen):
        if _in_use(address):
            sys.stderr.write(
                f"{address} is in use: something runs there already; stop it, or have another "
                "stack beside it:\n  make up LISTEN=127.0.0.1:7170 METRICS_LISTEN=127.0.0.1:7172 "
                "DIRECTORY=.demo/second\n"
            )
            return 2
    options = StackOptions(
        directory=arguments.directory.resolve(),
        model=model,
        model_id=arguments.model_id or (model.stem if model else "tiny"),
        pools=(
            PoolOptions(
                slots=arguments.slots,
                threads=arguments.threads or _threads(model),
                ctx_per_slot=arguments.ctx,
                gpu_layers=arguments.gpu_layers,
            ),
        ),
        listen=arguments.listen,
        orchestrator_toml=f'metrics_listen = "{arguments.metrics_listen}"',
        devices=arguments.devices,
    )
    try:
        return asyncio.run(up(options))
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
