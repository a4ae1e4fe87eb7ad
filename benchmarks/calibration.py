"""How far predictions can be taken at their word: `make bench-calibration`.

Start predictions are judged in runs without deadlines, probabilities of being on time in runs where
every job has one. The first tenth of the jobs is warm-up. The error of a fleet's start predictions
is the median over the jobs of all its loads that waited for over a second; that of a single load
is shown beside it. Exit code 1 when a bar is missed on a published fleet.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases import LOADS, Case, made_up, named, parser, verdict
from orchestrator_core.simulator.core_run import CoreOptions
from orchestrator_core.simulator.load import scaled
from orchestrator_core.simulator.measures import (
    Calibration,
    PredictionError,
    median_error,
    start_errors,
    summarise,
)
from orchestrator_core.simulator.study import Study, deadlines_ms, run_policy

ERROR_BAR, ECE_BAR, SKILL_BAR, WARM_UP = 0.2, 0.05, 0.1, 0.1
HEAD = "fleet       load    start error (jobs)      end error    ECE   skill   base"


@dataclass(frozen=True, slots=True)
class Measured:
    """One fleet at one load: errors of each start that took over a second, and two sums."""

    load: float
    start_errors: Sequence[float]
    end_error: float | None
    fit: Calibration | None


def measure(case: Case, load: float, core: CoreOptions) -> Measured:
    """Plays one case at one load with and without deadlines."""
    requests = scaled(case.requests, case.fleet, load)
    slots = [pool.slots for pool in case.fleet]
    free = run_policy(Study(case.fleet, requests, core=core), "predicted_end")
    due_ms = deadlines_ms(requests, case.fleet, seed=1)
    pressed = run_policy(Study(case.fleet, requests, due_ms, core), "predicted_end")
    ended = summarise(free, slots, WARM_UP).end_error
    return Measured(
        load,
        start_errors(free, WARM_UP),
        ended.median_relative if ended else None,
        summarise(pressed, slots, WARM_UP).calibration,
    )


def judge(name: str, found: Sequence[Measured]) -> bool:
    """Prints a fleet's figures load by load, then its start error in all; True if all is met."""
    good = True
    for one in found:
        error = median_error(one.start_errors)
        ended = "-" if one.end_error is None else f"{one.end_error:.3f}"
        fit, held = one.fit, "-"
        met = fit is not None and fit.ece <= ECE_BAR and (fit.brier_skill or 0.0) > SKILL_BAR
        if fit is not None:
            held = f"{fit.ece:.3f}  {fit.brier_skill or 0.0:6.3f}  {fit.base_rate:.3f}"
        note = "" if within(error) else "  (start missed at this load)"
        print(
            f"{name:11} {one.load:<4}    {told(error):22} {ended:>10}  {held}  {verdict(met)}{note}"
        )
        good = good and met
    pooled = median_error([error for one in found for error in one.start_errors])
    print(f"{name:11} all     {told(pooled):22} {'':>34}  {verdict(within(pooled))}", flush=True)
    return good and within(pooled)


def within(error: PredictionError | None) -> bool:
    """True when the bar is met; where nobody waited for long, nobody was told wrong."""
    return error is None or error.median_relative <= ERROR_BAR


def told(error: PredictionError | None) -> str:
    """An error and over how many jobs."""
    return f"{error.median_relative:.3f} ({error.jobs:,})" if error else "nobody waited"


def main() -> int:
    """Runs the published cases, then made-up ones, which do not decide the exit code."""
    line = parser(__doc__ or "")
    line.add_argument("--hints", action="store_true", help="tell how long each output will be")
    asked = line.parse_args()
    core = CoreOptions(hints=asked.hints)
    lengths = "told" if asked.hints else "not told"
    print(f"bars: start error {ERROR_BAR} over all loads, ECE {ECE_BAR}, Brier skill {SKILL_BAR}")
    print(f"the verdict of a load is about ECE and skill; lengths of outputs are {lengths}\n{HEAD}")
    verdicts = [
        judge(case.fleet_name, [measure(case, load, core) for load in LOADS])
        for case in named(asked)
    ]
    for case in made_up(asked):
        judge(case.fleet_name, [measure(case, load, core) for load in LOADS])
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
