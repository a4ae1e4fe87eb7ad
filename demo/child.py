"""Becomes `python -m ARGUMENTS` that ends with its parent: `python -m demo.child PARENT ARGUMENTS`.

A program of its own rather than a hook between fork and exec: gRPC's threads in the parent make it
unsafe to run Python there.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """A parent that is killed takes its services with it, also one that is gone already."""
    parent, *arguments = sys.argv[1:]
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            sys.exit(0)
    os.execv(sys.executable, [sys.executable, "-m", *arguments])  # noqa: S606 - itself, no shell


if __name__ == "__main__":
    main()
