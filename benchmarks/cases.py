"""The cases that the benchmarks of the scheduler run: traces and fleets, published or made up."""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator_core.simulator.fleets import PoolSpec, load_fleet, random_fleet
from orchestrator_core.simulator.traces import Request, load_trace, synthetic

TRACE, FLEETS = "azure_llm_2023_conv.csv", "fleets.toml"
NAMED_FLEETS = ("homelab", "mixed_rack", "uniform_rack")
LOADS = (0.7, 0.85, 0.95)


@dataclass(frozen=True, slots=True)
class Case:
    """A trace on a fleet; `fleet_name` says which bars apply."""

    fleet_name: str
    fleet: tuple[PoolSpec, ...]
    requests: tuple[Request, ...]


def parser(description: str) -> argparse.ArgumentParser:
    """The command line that all of these benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--traces", type=Path, required=True, help=f"folder of {TRACE}, {FLEETS}")
    parser.add_argument("--requests", type=int, help="only the first N requests, for a quick look")
    parser.add_argument("--others", type=int, default=0, help="made-up traces and fleets as well")
    parser.add_argument("--first-seed", type=int, default=1, help="seed of the first made-up case")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser


def named(asked: argparse.Namespace) -> Iterator[Case]:
    """The conversation trace on the three published fleets."""
    try:
        requests = load_trace(asked.traces / TRACE, asked.requests)
        for name in NAMED_FLEETS:
            yield Case(name, load_fleet(asked.traces / FLEETS, name), requests)
    except (OSError, ValueError) as error:
        sys.exit(f"{error}; name the folder with --traces (make: TRACES=…)")


def made_up(asked: argparse.Namespace) -> Iterator[Case]:
    """Traces and fleets from seeds, which nobody can have tuned for."""
    for seed in range(asked.first_seed, asked.first_seed + asked.others):
        yield Case(f"seed {seed}", random_fleet(seed), synthetic(seed, asked.requests or 6_000))


def verdict(passed: bool) -> str:
    """PASS or FAIL, for the last column."""
    return "PASS" if passed else "FAIL"
