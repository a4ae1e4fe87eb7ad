"""How far predictions can be taken at their word: `make bench-calibration`.

Start predictions are judged in runs without deadlines, probabilities of being on time in runs where
every job has one. The first tenth of the jobs is warm-up. Exit code 1 when a bar is missed on a
published fleet.
"""

import sys

from benchmarks.cases import LOADS, Case, arguments, made_up, named, verdict
from orchestrator_core.simulator.load import scaled
from orchestrator_core.simulator.measures import Summary, summarise
from orchestrator_core.simulator.study import Study, deadlines_ms, run_policy

ERROR_BAR, ECE_BAR, SKILL_BAR, WARM_UP = 0.2, 0.05, 0.1, 0.1
HEAD = "fleet       load  start error (jobs)  end error    ECE   skill   base"


def measure(case: Case, load: float) -> bool:
    """Plays one case at one load with and without deadlines, prints a line; True if all is met."""
    requests = scaled(case.requests, case.fleet, load)
    slots = [pool.slots for pool in case.fleet]
    free = summarise(run_policy(Study(case.fleet, requests), "predicted_end"), slots, WARM_UP)
    due_ms = deadlines_ms(requests, case.fleet, seed=1)
    pressed_run = run_policy(Study(case.fleet, requests, due_ms), "predicted_end")
    pressed = summarise(pressed_run, slots, WARM_UP)
    good = _good(free, pressed)
    start, end, fit = free.start_error, free.end_error, pressed.calibration
    error = f"{start.median_relative:.3f} ({start.jobs})" if start else "nobody waited"
    ended = f"{end.median_relative:9.3f}" if end else "        -"
    held = f"{fit.ece:.3f}  {fit.brier_skill or 0.0:6.3f}  {fit.base_rate:.3f}" if fit else "-"
    print(
        f"{case.fleet_name:11} {load:.2f}  {error:18}  {ended}  {held}  {verdict(good)}", flush=True
    )
    return good


def _good(free: Summary, pressed: Summary) -> bool:
    start, fit = free.start_error, pressed.calibration
    if start is not None and start.median_relative > ERROR_BAR:
        return False
    return fit is not None and fit.ece <= ECE_BAR and (fit.brier_skill or 0.0) > SKILL_BAR


def main() -> int:
    """Runs the published cases, then made-up ones, which do not decide the exit code."""
    asked = arguments(__doc__ or "")
    print(f"bars: start error {ERROR_BAR}, ECE {ECE_BAR}, Brier skill over {SKILL_BAR}\n{HEAD}")
    verdicts = [measure(case, load) for case in named(asked) for load in LOADS]
    for case in made_up(asked):
        for load in LOADS:
            measure(case, load)
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
