"""`python -m orchestrator_core.recorder FILE`: the same as `llorch replay FILE`."""

import argparse
import sys

from orchestrator_core.recorder import command


def main(argv: list[str] | None = None) -> int:
    """Replays a recording; returns the exit code."""
    parser = argparse.ArgumentParser(prog="replay", description=command.summary)
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one record instead of text")
    try:
        return command.run(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
