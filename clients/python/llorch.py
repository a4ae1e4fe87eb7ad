# SPDX-License-Identifier: Apache-2.0
"""The `llorch` command from its first moment: Ctrl-C ends it quietly, while it is imported too.

A module of its own, outside `llamaorch_client`: what stands inside a package runs only once the
package is imported, which takes the better part of a second.
"""

import os
import signal
import sys

FAILED = 1
STDERR = 2
INTERRUPTED = 130


def main() -> int:
    """Carries out the command line and returns its exit code; 130 after Ctrl-C."""
    # What libraries make of an exception while they are imported is anybody's guess, and there is
    # nothing to put in order yet: the process ends at once.
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    # Ours are the sentences; gRPC would log failed handshakes beside them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _open_what_is_closed()
    from llamaorch_client.cli.main import main as carry_out  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = carry_out()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as ended:
        # The help, and errors of usage.
        code = ended.code if isinstance(ended.code, int) else 0
    return _flushed(code)


def _open_what_is_closed() -> None:
    """Standard streams that are closed, as by `>&-`, become empty ones.

    A connection would get their numbers, and be written to.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def _flushed(code: int) -> int:
    """The exit code, once what was written is out; it may not fail again, and louder, at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not code and not isinstance(error, BrokenPipeError):
                print(f"llorch: standard output: {error.strerror}", file=sys.stderr)  # noqa: T201
                code = FAILED
    return code


if __name__ == "__main__":
    sys.exit(main())
