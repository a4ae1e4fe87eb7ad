"""Runs seeds: `python -m faults.simulation --seed N`, or many of them."""

import sys

from faults.simulation.command import main

if __name__ == "__main__":
    sys.exit(main())
