"""The command `orchestratord`, and `orchestratord token`.

Exit codes: 0 stopped as asked, 1 broke down, 2 cannot start as configured.
"""

import asyncio
import gc
import os
import sys

import structlog

# The first of ours: the others import gRPC, and much that takes long.
from orchestrator_core import early_signals, failpoints, quiet_grpc  # noqa: F401
from orchestrator_core.auth import command as token_command
from orchestrator_core.config.loading import load_source
from orchestrator_core.config.problems import ConfigError
from orchestrator_core.errors import CannotStartError
from orchestrator_core.loop import Loop
from orchestrator_core.process import run
from orchestrator_core.store.port import StoreTakenError
from orchestrator_core.telemetry.library_lines import hear_libraries
from orchestrator_core.telemetry.line_sink import configure_logs

EXIT_BROKE_DOWN = 1
EXIT_CANNOT_START = 2
# The journal's writer thread competes with the event loop for the interpreter; at the default of
# 5 ms a commit waits tens of milliseconds for its turn.
SWITCH_INTERVAL_S = 0.0005

_log = structlog.get_logger("orchestratord")


# Allocations between two looks for cyclic garbage. A relay reaches the default of 700 within
# milliseconds, with objects that live long or die at once: looking costs a twentieth of its time.
GC_ALLOCATIONS = 20_000


def main(argv: list[str] | None = None) -> int:
    """Runs orchestratord until a signal; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["token"]:
        early_signals.end_by_hanging_up()
        return token_command.run(words[1:])
    try:
        source, config = load_source(words, os.environ)
        configure_logs(config.log_level, config.log_format)
        hear_libraries()
        _arm(os.environ.get(failpoints.VARIABLE, ""))
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.set_threshold(GC_ALLOCATIONS)
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(run(config, source))
    except ConfigError as error:
        for problem in error.problems:
            print(f"orchestratord: {problem}", file=sys.stderr)
        return EXIT_CANNOT_START
    except CannotStartError as error:
        print(f"orchestratord: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    except StoreTakenError as error:
        print(f"orchestratord: {error}", file=sys.stderr)
        return EXIT_BROKE_DOWN
    return 0


def _arm(failpoint: str) -> None:
    try:
        failpoints.arm(failpoint)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if failpoint:
        _log.warning("failpoint_armed", failpoint=failpoint, human="It will die where it was told.")


if __name__ == "__main__":
    sys.exit(main())
