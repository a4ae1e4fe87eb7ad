# SPDX-License-Identifier: Apache-2.0
"""The `llorch` command from its first moment: Ctrl-C ends it quietly, while it is imported too.

A module of its own, outside `llamaorch_client`: what stands inside a package runs only once the
package is imported, which takes the better part of a second.
"""

import os
import signal
import sys

INTERRUPTED = 130


def main() -> int:
    """Carries out the command line and returns its exit code; 130 after Ctrl-C."""
    # What libraries make of an exception while they are imported is anybody's guess, and there is
    # nothing to put in order yet: the process ends at once.
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    # Ours are the sentences; gRPC would log failed handshakes beside them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from llamaorch_client.cli.main import main as carry_out  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return carry_out()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
