"""One orchestratord as a process: what its signals mean, and in which order it ends."""

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine

import structlog

from orchestrator_core import early_signals
from orchestrator_core.config.live import LiveConfig
from orchestrator_core.config.loading import ConfigSource
from orchestrator_core.config.schema import Config
from orchestrator_core.errors import CannotStartError
from orchestrator_core.server import OrchestratorServer
from orchestrator_core.store.port import StoreError

_log = structlog.get_logger("orchestratord")


async def run(config: Config, source: ConfigSource | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends the drain at once.

    SIGHUP reads the configuration again.
    """
    server, started = OrchestratorServer(config, source=source), False
    first, second, again = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled(first, second))
    loop.add_signal_handler(signal.SIGHUP, again.set)
    if early_signals.hung_up():
        again.set()
    try:
        try:
            await server.start()
        except (StoreError, OSError) as error:
            raise CannotStartError(str(error)) from error
        started = True
        # What is here now stays: looks for cyclic garbage need not walk it over and over.
        gc.collect()
        gc.freeze()
        await _first_of(first.wait(), server.wait_failed(), _reload(server.config, again))
        grace_s = server.config.running.shutdown_grace_ms / 1000
        await _first_of(server.drain(grace_s), second.wait(), server.wait_failed())
    finally:
        await server.stop()
        # What never started has its reason told, and that alone.
        if started:
            _log.info("stopped", human="orchestratord has stopped.")


async def _reload(config: LiveConfig, asked: asyncio.Event) -> None:
    """Reads the configuration each time it is asked for; what is asked meanwhile counts once."""
    while True:
        await asked.wait()
        asked.clear()
        await config.reload()


def _signalled(first: asyncio.Event, second: asyncio.Event) -> Callable[[], None]:
    def handle() -> None:
        (second if first.is_set() else first).set()

    return handle


async def _first_of(*waits: Coroutine[object, object, object]) -> None:
    """Returns, or raises, as the first of several waits does; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
