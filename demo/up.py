"""Both services in the foreground until Ctrl-C: `make up`, MODEL=/path/to/model.gguf if given."""

import asyncio
import signal
import sys

from demo.services import ServiceError, Stack, StackOptions
from demo.up_options import LISTEN, OptionsError, parse


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


def main() -> int:
    """Parses the command line and runs."""
    try:
        options, note = parse()
        sys.stdout.write(note)
        return asyncio.run(up(options))
    except OptionsError as error:
        sys.stderr.write(f"make up: {error}\n")
        return 2
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        # Of the folder of logs, journal and configurations.
        sys.stderr.write(f"make up: {error.filename}: {error.strerror}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
