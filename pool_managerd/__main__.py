"""The command `pool-managerd`.

Exit codes: 0 stopped as asked, 1 broke down, 2 cannot start as configured.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from pool_managerd import failpoints
from pool_managerd.config import Config, ConfigError, load_config
from pool_managerd.config_text import to_toml
from pool_managerd.errors import DevicesUnavailableError
from pool_managerd.server import PoolManager
from pool_managerd.telemetry import configure_logs, log

DEFAULT_CONFIG = Path("pool-managerd.toml")
EXIT_CANNOT_START = 2


def main(argv: list[str] | None = None) -> int:
    """Runs the pool manager until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="pool-managerd", description="Runs inference engines on one GPU host."
    )
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="configuration (TOML)"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the effective configuration and exit"
    )
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config)
        if args.print_config:
            print(to_toml(config), end="")
            return 0
        configure_logs(config.log_level)
        _arm(os.environ.get(failpoints.VARIABLE, ""))
        asyncio.run(_serve(config))
    except ConfigError as error:
        for problem in error.problems:
            print(f"pool-managerd: {problem}", file=sys.stderr)
        return EXIT_CANNOT_START
    except (DevicesUnavailableError, OSError) as error:
        print(f"pool-managerd: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


def _arm(failpoint: str) -> None:
    try:
        failpoints.arm(failpoint)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if failpoint:
        log.warning("failpoint_armed", failpoint=failpoint, human="It will die where it was told.")


async def _serve(config: Config) -> None:
    manager = PoolManager(config)
    loop = asyncio.get_running_loop()
    asked: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        # The first signal drains; whoever asks twice does not want to wait.
        asked.append(number)
        if len(asked) == 1:
            manager.drain()
        else:
            manager.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, manager.revive)
    await manager.run()


if __name__ == "__main__":
    sys.exit(main())
