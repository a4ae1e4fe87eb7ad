"""The command `pool-managerd`.

Exit codes: 0 stopped as asked, 1 broke down or cannot read its devices yet, 2 cannot start as
configured. Of `check`: 0 every pool can start, 1 a pool cannot, 2 the pool manager cannot. Of
`init`: 0 a configuration was written, 2 it was not. Of all commands: 130 after Ctrl-C.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path

# The first of ours: the others import gRPC, and much that takes long.
from pool_managerd import early_signals, failpoints, quiet_grpc  # noqa: F401
from pool_managerd.cli.check import inspect_host, report_lines
from pool_managerd.cli.fetch import run_fetch
from pool_managerd.cli.init import first_config, look
from pool_managerd.config.loading import load_config
from pool_managerd.config.problems import ConfigError
from pool_managerd.config.schema import Config
from pool_managerd.config.text import to_toml
from pool_managerd.errors import DevicesUnavailableError
from pool_managerd.factory import make_devices, nvidia_devices
from pool_managerd.loop import PatientLoop
from pool_managerd.server import PoolManager
from pool_managerd.telemetry import configure_logs, log
from pool_managerd.telemetry.library_lines import hear_libraries

STDOUT = 1
DEFAULT_CONFIG = Path("pool-managerd.toml")
# A driver may come later: at the start of the machine, or when its module has been built.
EXIT_NO_DEVICES = 1
EXIT_CANNOT_START = 2
EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs the pool manager until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="pool-managerd", description="Runs inference engines on one GPU host."
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("run", "init", "check", "fetch"),
        default="run",
        help="run (the default), init: write a first configuration, check what would run here, or "
        "fetch a model",
    )
    parser.add_argument(
        "ref",
        nargs="?",
        metavar="REF",
        help="fetch: hf:ORG/REPO/FILE, https://... or a path",
    )
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="configuration (TOML)"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the effective configuration and exit"
    )
    version = f"%(prog)s {importlib.metadata.version('llamaorch')}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("--json", action="store_true", help="check: print one JSON object")
    parser.add_argument("--digests", action="store_true", help="check: read models of any size")
    # Intermixed: the reference may follow options.
    args = parser.parse_intermixed_args(argv)
    if args.command != "run":
        early_signals.end_by_hanging_up()
    if args.command == "fetch" and args.ref is None:
        parser.error("fetch needs a REF, e.g. hf:ORG/REPO/FILE")
    if args.command != "fetch" and args.ref is not None:
        parser.error(f"what is {args.ref}? A configuration is named by --config FILE")
    try:
        return _carry_out(args)
    except ConfigError as error:
        for problem in error.problems:
            print(f"pool-managerd: {problem}", file=sys.stderr)
        return EXIT_CANNOT_START
    except KeyboardInterrupt:
        # Of a command: a service hears SIGINT otherwise.
        return EXIT_INTERRUPTED
    except (DevicesUnavailableError, OSError) as error:
        print(f"pool-managerd: {error}", file=sys.stderr)
        no_devices = isinstance(error, DevicesUnavailableError)
        return EXIT_NO_DEVICES if no_devices else EXIT_CANNOT_START


def _carry_out(args: argparse.Namespace) -> int:
    if args.command == "init":
        return _init(args.config)
    if args.command == "check" and not args.print_config:
        return _check(args.config, as_json=args.json, all_digests=args.digests)
    config = load_config(args.config)
    if args.print_config:
        print(to_toml(config), end="")
        return 0
    configure_logs(config.log_level, config.log_format)
    hear_libraries()
    if args.command == "fetch":
        return run_fetch(config, args.ref)
    _arm(os.environ.get(failpoints.VARIABLE, ""))
    # Not on uvloop: it starts processes by a plain fork, in which gRPC's handlers crash.
    with asyncio.Runner(loop_factory=PatientLoop) as runner:
        runner.run(_serve(config, args.config.absolute()))
    return 0


def _check(file: Path, *, as_json: bool, all_digests: bool) -> int:
    if _is_output(file):
        told = (
            f"{file}: this is where standard output goes, so the shell has emptied it; if it held "
            "a configuration, bring that back from a copy. Send the report elsewhere; "
            "`pool-managerd init` writes a first configuration"
        )
        raise ConfigError([told])
    config = load_config(file)
    report = asyncio.run(inspect_host(config, make_devices(config), all_digests=all_digests))
    if as_json:
        print(json.dumps({**asdict(report), "exit_code": report.exit_code}))
    else:
        print("\n".join(report_lines(report)))
    return report.exit_code


def _is_output(file: Path) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(STDOUT))
    except OSError:
        # There is no file, or standard output is closed.
        return False


def _init(file: Path) -> int:
    """Writes a configuration to begin with; one that is there stays as it is."""
    empty = file.is_file() and not file.stat().st_size
    text = first_config(asyncio.run(look(file.absolute().parent, nvidia_devices())))
    try:
        with file.open("w" if empty else "x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError as error:
        kept = f"{file} is there, and stays as it is: `pool-managerd check` looks at it"
        raise ConfigError([f"{kept}; name another one by --config FILE"]) from error
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror or error}"]) from error
    named = "" if file == DEFAULT_CONFIG else f" --config {shlex.quote(str(file))}"
    told = f"{file} is written, a first configuration: look at it, change it, then\n"
    # Standard output may be that very file.
    print(f"{told}    pool-managerd check{named}", file=sys.stderr)
    return 0


def _arm(failpoint: str) -> None:
    try:
        failpoints.arm(failpoint)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if failpoint:
        log.warning("failpoint_armed", failpoint=failpoint, human="It will die where it was told.")


async def _serve(config: Config, file: Path) -> None:
    manager = PoolManager(config, read=lambda: load_config(file))
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
    loop.add_signal_handler(signal.SIGHUP, manager.hang_up)
    if early_signals.hung_up():
        manager.hang_up()
    await manager.run()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # It has stopped as asked: whoever asks once more does not make that a failure.
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
