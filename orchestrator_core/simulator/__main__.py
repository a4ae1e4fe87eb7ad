"""`python -m orchestrator_core.simulator`: the command without the client."""

import argparse
import sys

from orchestrator_core.simulator import command

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="simulate", description=command.summary)
    command.add_arguments(parser)
    sys.exit(command.run(parser.parse_args()))
