"""Completion times of the scheduler against other dispatchers: `make bench-completion`.

Prints every policy's mean and 95th percentile, then the ratios with their bars. Exit code 1 when a
bar is missed on a published fleet. Nobody is told how long an output will be. Against bindings on
arrival and late ones the average over the loads is judged, and each load is shown.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.cases import LOADS, Case, made_up, named, parser, verdict
from orchestrator_core.simulator.clairvoyant import least_mean_completion_ms
from orchestrator_core.simulator.load import scaled
from orchestrator_core.simulator.measures import Spread, summarise
from orchestrator_core.simulator.study import Study, policy_names, run_all

OWN, NEVER_DECLINE = "predicted_end", "never_decline"
ARRIVAL = ("arrival:round_robin", "arrival:power_of_two", "arrival:least_requests")
LATE = ("late:least_loaded", "late:most_free", "late:random")
# Shown, without a bar: proxies that know how many slots each engine has.
STRONG = ("arrival:least_requests_per_slot",)
ARRIVAL_BARS = {"homelab": 0.7, "mixed_rack": 0.5}
LATE_BAR, LATE_BAR_FULL, UNIFORM_BAR = 0.98, 1.0, 1.01


# What is compared, the ratio, and the most that it may be.
Check = tuple[str, float, float]


@dataclass(frozen=True, slots=True)
class Ratios:
    """Our mean and 95th percentile over the best of each family, at one load."""

    load: float
    arrival_mean: float
    late_mean: float
    late_p95: float
    greedy_mean: float | None
    bound: float


def measure(case: Case, load: float, processes: int) -> Ratios:
    """Plays one case at one load through every policy and prints the table."""
    known = policy_names()
    names = [n for n in (OWN, NEVER_DECLINE, *LATE, *ARRIVAL, *STRONG) if n in known]
    requests = scaled(case.requests, case.fleet, load)
    runs = run_all(Study(case.fleet, requests), names, processes)
    slots = [pool.slots for pool in case.fleet]
    spreads: dict[str, Spread] = {}
    for run in runs:
        done = summarise(run, slots, 0.0)
        if done.completion is None or done.finished < done.jobs:
            sys.exit(f"{run.policy} finished {done.finished} of {done.jobs} jobs")
        spreads[run.policy] = done.completion
    least_ms = least_mean_completion_ms(case.fleet, requests)
    print(f"\n{case.fleet_name}, load {load}: bound {least_ms / 1000:.3f} s on the mean")
    for name, done_in in spreads.items():
        mean_s, p95_s = done_in.mean_ms / 1000, done_in.p95_ms / 1000
        print(f"  {name:34} mean {mean_s:10.3f} s  p95 {p95_s:10.3f} s")
    return _ratios(load, spreads, least_ms)


def _ratios(load: float, spreads: Mapping[str, Spread], least_ms: float) -> Ratios:
    own, greedy = spreads[OWN], spreads.get(NEVER_DECLINE)
    return Ratios(
        load=load,
        arrival_mean=own.mean_ms / min(spreads[n].mean_ms for n in ARRIVAL),
        late_mean=own.mean_ms / min(spreads[n].mean_ms for n in LATE),
        late_p95=own.p95_ms / min(spreads[n].p95_ms for n in LATE),
        greedy_mean=None if greedy is None else own.mean_ms / greedy.mean_ms,
        bound=own.mean_ms / least_ms,
    )


def _heterogeneous(name: str, found: list[Ratios]) -> list[Check]:
    families = (
        ("mean / best bound on arrival", [one.arrival_mean for one in found], ARRIVAL_BARS[name]),
        ("mean / best late", [one.late_mean for one in found], LATE_BAR),
        ("p95 / best late", [one.late_p95 for one in found], LATE_BAR),
    )
    checks: list[Check] = []
    for what, values, bar in families:
        shown = " ".join(f"{value:.3f}" for value in values)
        checks.append((f"{what}, average of {shown}", sum(values) / len(values), bar))
        if bar == LATE_BAR:
            checks.append((f"{what}, {found[-1].load}", values[-1], LATE_BAR_FULL))
    return checks


def _uniform(found: list[Ratios]) -> list[Check]:
    checks: list[Check] = []
    for one in found:
        checks.append((f"mean / best late, {one.load}", one.late_mean, UNIFORM_BAR))
        checks.append((f"p95 / best late, {one.load}", one.late_p95, UNIFORM_BAR))
        checks.append((f"mean / best bound on arrival, {one.load}", one.arrival_mean, UNIFORM_BAR))
    return checks


def met(value: float, bar: float) -> bool:
    """Compares as it is printed: a difference below half a thousandth is no difference."""
    return round(value, 3) <= bar


def judge(name: str, found: list[Ratios]) -> bool:
    """Prints the ratios of one fleet with their bars; True when all are met."""
    checks = _heterogeneous(name, found) if name in ARRIVAL_BARS else _uniform(found)
    checks += [
        (f"mean / never declining, {one.load}", one.greedy_mean, 1.0)
        for one in found
        if one.greedy_mean is not None
    ]
    print(f"\n{name}")
    for what, value, bar in checks:
        print(f"  {what:62} {value:6.3f}  at most {bar:5.3f}  {verdict(met(value, bar))}")
    return all(met(value, bar) for _, value, bar in checks)


def main() -> int:
    """Runs the published cases with their bars, then made-up ones without."""
    asked = parser(__doc__ or "").parse_args()
    good = True
    for case in named(asked):
        found = [measure(case, load, asked.processes) for load in LOADS]
        for one in found:
            print(
                f"  load {one.load}: mean x {one.late_mean:.3f}, p95 x {one.late_p95:.3f} of the "
                f"best late binding; mean x {one.bound:.2f} of the clairvoyant bound"
            )
        good = judge(case.fleet_name, found) and good
    others = [
        (case, measure(case, load, asked.processes)) for case in made_up(asked) for load in LOADS
    ]
    for case, one in others:
        greedy = "" if one.greedy_mean is None else f", x {one.greedy_mean:.3f} of never declining"
        print(
            f"{case.fleet_name:10} load {one.load}: mean x {one.arrival_mean:.3f} of bound on "
            f"arrival, x {one.late_mean:.3f} (p95 x {one.late_p95:.3f}) of late{greedy}, "
            f"x {one.bound:.2f} of the bound"
        )
    print(f"\n{verdict(good)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
