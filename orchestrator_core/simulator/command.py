"""`llorch simulate`: compares policies on a trace and a fleet, and answers what-if questions."""

import argparse
import json
import os
import sys
from pathlib import Path

from orchestrator_core.simulator.core_run import CoreOptions
from orchestrator_core.simulator.fleets import PoolSpec, load_fleet, random_fleet
from orchestrator_core.simulator.load import scaled
from orchestrator_core.simulator.measures import summarise
from orchestrator_core.simulator.study import Study, deadlines_ms, expand, run_all
from orchestrator_core.simulator.traces import Request, load_trace, synthetic

summary = "play a trace through the scheduler on virtual time: compare policies and fleets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    add = parser.add_argument
    add("--trace", required=True, metavar="FILE", help="CSV or JSONL, or synthetic:SEED")
    add("--fleet", required=True, metavar="FILE:NAME", help="fleet of a TOML file, or random:SEED")
    add("--load", type=float, metavar="X", help="scale arrivals to this load (0.85 = 85 %%)")
    add("--policy", default="all", metavar="NAMES", help="comma-separated, or all")
    add("--requests", type=int, metavar="N", help="only the first N requests of the trace")
    add("--hints", action="store_true", help="tell the core each job's real length")
    add("--deadlines", action="store_true", help="give every job a deadline")
    add("--core", action="append", default=[], metavar="KEY=VALUE", help="a setting of the core")
    add("--seed", type=int, default=0, help="for random rivals and deadlines")
    add("--warm-up", type=float, default=0.1, metavar="SHARE", help="jobs not asked for errors")
    add("--report-every-ms", type=float, default=1000.0, help="how often pools report")
    add("--processes", type=int, default=os.cpu_count() or 1, help="policies run at a time")


def run(arguments: argparse.Namespace) -> int:
    """Carries the command out. Raises ValueError and OSError with what to change."""
    trace = _trace(arguments.trace, arguments.requests)
    fleet = _fleet(arguments.fleet)
    if arguments.load is not None:
        trace = scaled(trace, fleet, arguments.load)
    study = Study(
        fleet=fleet,
        requests=trace,
        deadlines_ms=deadlines_ms(trace, fleet, arguments.seed) if arguments.deadlines else None,
        core=CoreOptions(
            dict(_setting(text) for text in arguments.core),
            arguments.hints,
            arguments.report_every_ms,
        ),
        seed=arguments.seed,
    )
    slots = [pool.slots for pool in fleet]
    print(
        f"{'policy':34}{'mean s':>9}{'p95 s':>9}{'ttft s':>9}{'wait s':>9}{'cpu s':>7}  start error (jobs)  calibration"
    )
    for one in run_all(study, expand(arguments.policy), arguments.processes):
        s = summarise(one, slots, arguments.warm_up)
        error = (
            f"{s.start_error.median_relative:.3f} ({s.start_error.jobs})" if s.start_error else "-"
        )
        c = s.calibration
        cal = (
            f"ece {c.ece:.3f} skill {c.brier_skill:.3f} base {c.base_rate:.3f}"
            if c and c.brier_skill is not None
            else "-"
        )
        print(
            f"{s.policy:34}{s.completion.mean_ms / 1000:9.3f}{s.completion.p95_ms / 1000:9.3f}{s.first_token.mean_ms / 1000:9.3f}{s.wait.mean_ms / 1000:9.3f}{one.cpu_s:7.1f}  {error:18}  {cal}",
            flush=True,
        )
    return 0


def _trace(text: str, limit: int | None) -> tuple[Request, ...]:
    kind, _, seed = text.partition(":")
    if kind == "synthetic" and seed.isdigit():
        return synthetic(int(seed), limit or 10_000)
    return load_trace(Path(text), limit)


def _fleet(text: str) -> tuple[PoolSpec, ...]:
    path, _, name = text.rpartition(":")
    if path == "random" and name.isdigit():
        return random_fleet(int(name))
    if not path:
        raise ValueError(f"--fleet {text!r}: must be FILE:NAME, or random:SEED")
    return load_fleet(Path(path), name)


def _setting(text: str) -> tuple[str, object]:
    key, found, value = text.partition("=")
    if not found:
        raise ValueError(f"--core {text!r}: must be KEY=VALUE")
    return key, json.loads(value)
