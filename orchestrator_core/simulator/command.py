"""`llorch simulate`: compares policies on a trace and a fleet, and answers what-if questions."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from orchestrator_core.simulator import plot
from orchestrator_core.simulator.clairvoyant import least_mean_completion_ms
from orchestrator_core.simulator.core_run import CoreOptions
from orchestrator_core.simulator.fleets import PoolSpec, load_fleet, random_fleet, what_if
from orchestrator_core.simulator.load import offered_load, scaled
from orchestrator_core.simulator.measures import summarise
from orchestrator_core.simulator.report import Result, as_record, print_tables
from orchestrator_core.simulator.study import Study, deadlines_ms, expand, run_all
from orchestrator_core.simulator.traces import Request, load_trace, synthetic

summary = "play a trace through the scheduler on virtual time: compare policies and fleets"

EXCERPT, FLEETS = "azure_conversation_excerpt.csv", "fleets.toml"
DEFAULT_LOAD, SYNTHETIC_REQUESTS = 0.85, 10_000
DEFAULT_POLICIES = "predicted_end,least_loaded,most_free,round_robin,power_of_two,least_requests"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    add = parser.add_argument
    add("--trace", metavar="FILE", help="CSV or JSONL, or synthetic:SEED (default: an excerpt)")
    add(
        "--fleet",
        default="homelab",
        metavar="NAME",
        help="NAME of --fleets, FILE:NAME, or random:SEED (default homelab)",
    )
    add("--fleets", type=Path, metavar="FILE", help="TOML file of fleets (default: a few samples)")
    add(
        "--load",
        type=_positive,
        metavar="X",
        help="stretch arrivals to this load (default: as recorded; 0.85 for the excerpt and "
        "made-up traces)",
    )
    add("--policy", default=DEFAULT_POLICIES, metavar="NAMES", help="comma-separated, or all")
    add(
        "--what-if",
        metavar="CHANGES",
        help='changed fleet to compare with: "+rtx3060 -gtx1080"; write --what-if=-gtx1080 when it '
        "begins with a removal",
    )
    add("--requests", type=_whole, metavar="N", help="only the first N requests")
    add("--hints", action="store_true", help="tell the scheduler how long each output will be")
    add("--deadlines", action="store_true", help="give every job a deadline, for calibration")
    add("--core", action="append", default=[], metavar="KEY=VALUE", help="a scheduler setting")
    add("--seed", type=int, default=0, metavar="N", help="for dice and deadlines (default 0)")
    add(
        "--warm-up",
        type=_share,
        default=0.1,
        metavar="SHARE",
        help="first share of the jobs, left out of prediction errors (default 0.1)",
    )
    add(
        "--report-every-ms",
        type=_positive,
        default=1000.0,
        metavar="MS",
        help="how often each pool reports (default 1000)",
    )
    add("--out", type=Path, metavar="FILE", help="write the result as JSON")
    add("--plot", type=Path, metavar="FILE", help="draw the result as .png or .svg")
    add(
        "--processes",
        type=_whole,
        default=os.cpu_count() or 1,
        metavar="N",
        help="policies at a time (default: one per core)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carries the command out. Raises ValueError and OSError with what to change."""
    if arguments.plot is not None:
        plot.check(arguments.plot)
    for path in (arguments.out, arguments.plot):
        if path is not None and not path.parent.is_dir():
            # Found now, not after minutes of work that would be lost.
            raise ValueError(f"{path}: there is no directory {path.parent}")
    names = expand(arguments.policy)
    fleet = _fleet(arguments)
    requests = _trace(arguments.trace, arguments.requests)
    load = arguments.load
    if load is None and (arguments.trace is None or _made_up(arguments.trace)):
        # Their rates say nothing about this fleet.
        load = DEFAULT_LOAD
    if load is not None:
        requests = scaled(requests, fleet, load)
    due_ms = deadlines_ms(requests, fleet, arguments.seed) if arguments.deadlines else None
    settings = dict(_setting(text) for text in arguments.core)
    core = CoreOptions(settings, arguments.hints, arguments.report_every_ms)
    study = Study(fleet, requests, due_ms, core, arguments.seed)
    results = [solve(study, names, arguments.fleet, arguments.warm_up, arguments.processes)]
    if arguments.what_if:
        changed = Study(what_if(fleet, arguments.what_if), requests, due_ms, core, arguments.seed)
        label = f"{arguments.fleet} {arguments.what_if}"
        results.append(solve(changed, names, label, arguments.warm_up, arguments.processes))
    _publish(arguments, results)
    return 0


def solve(
    study: Study, names: tuple[str, ...], label: str, warm_up: float, processes: int
) -> Result:
    """Runs every policy of a study and sums the runs up."""
    runs = run_all(study, names, processes)
    slots = [pool.slots for pool in study.fleet]
    return Result(
        label=label,
        fleet=study.fleet,
        load=offered_load(study.fleet, study.requests),
        least_mean_ms=least_mean_completion_ms(study.fleet, study.requests),
        runs=tuple(runs),
        summaries=tuple(summarise(one, slots, warm_up) for one in runs),
    )


def _publish(arguments: argparse.Namespace, results: list[Result]) -> None:
    text = json.dumps(as_record(_asked(arguments), results), indent=1) + "\n"
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
    if arguments.plot is not None:
        plot.draw(arguments.plot, results)
    if getattr(arguments, "json", False):
        sys.stdout.write(text)
    else:
        print_tables(results, sys.stdout)


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The question, for whoever finds the JSON file later."""
    keys = ("fleet", "load", "what_if", "requests", "hints", "deadlines", "core", "seed", "warm_up")
    asked = {key: getattr(arguments, key) for key in keys}
    return {"trace": arguments.trace or EXCERPT, **asked}


@contextmanager
def _shipped(name: str) -> Iterator[Path]:
    with as_file(files("orchestrator_core.simulator") / "data" / name) as path:
        yield path


def _trace(text: str | None, limit: int | None) -> tuple[Request, ...]:
    if text is None:
        with _shipped(EXCERPT) as path:
            return load_trace(path, limit)
    if _made_up(text):
        return synthetic(int(text.partition(":")[2]), limit or SYNTHETIC_REQUESTS)
    return load_trace(Path(text), limit)


def _made_up(trace: str) -> bool:
    kind, _, seed = trace.partition(":")
    return kind == "synthetic" and seed.isdigit()


def _fleet(arguments: argparse.Namespace) -> tuple[PoolSpec, ...]:
    path, _, name = arguments.fleet.rpartition(":")
    if path == "random" and name.isdigit():
        return random_fleet(int(name))
    if path:
        return load_fleet(Path(path), name)
    if arguments.fleets is not None:
        return load_fleet(arguments.fleets, name)
    with _shipped(FLEETS) as shipped:
        return load_fleet(shipped, name)


def _setting(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        raise ValueError(
            f"--core {text!r}: must be KEY=VALUE with a number, true, false or a quoted name, "
            "such as batch_every=4"
        ) from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, is {text!r}") from None


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("must be at least 0 and less than 1")
    return value


def _whole(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, is {text!r}")
    return value
