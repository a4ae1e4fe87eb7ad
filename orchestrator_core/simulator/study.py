"""Which policies are compared on which jobs and pools, and how each of them is run."""

import difflib
import multiprocessing
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

from orchestrator_core.simulator.core_run import CoreOptions, CoreRun, has_setting
from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.load import mean_service_ms
from orchestrator_core.simulator.results import Run
from orchestrator_core.simulator.rivals import POLICIES, Binding, RivalRun
from orchestrator_core.simulator.traces import Request

# Names of the core's own variants and the settings that make them.
CORE_POLICIES: dict[str, dict[str, bool]] = {
    "predicted_end": {},
    "never_decline": {"decline_offers": False},
    "scoring_off": {"performance_scoring": False},
}
DEADLINE_LEAST, DEADLINE_MOST = 0.5, 8.0
NEAR_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Study:
    """One comparison: who asks for what, on which pools. `deadlines_ms` are instants, or None."""

    fleet: tuple[PoolSpec, ...]
    requests: tuple[Request, ...]
    deadlines_ms: tuple[int, ...] | None = None
    core: CoreOptions = field(default_factory=CoreOptions)
    seed: int = 0


def policy_names() -> tuple[str, ...]:
    """All policies in the order in which they are shown; what this core cannot do is left out."""
    own = [
        name
        for name, settings in CORE_POLICIES.items()
        if all(has_setting(key) for key in settings)
    ]
    rivals = [
        f"{binding.value}:{name}" for binding, policies in POLICIES.items() for name in policies
    ]
    return (*own, *rivals)


def expand(names: str) -> tuple[str, ...]:
    """Reads a list such as `predicted_end,late:random,round_robin`; a bare rival means both kinds.

    Raises:
        ValueError: when a policy is not known; the message names those that are spelt like it,
            or all where none is.
    """
    known, found = policy_names(), dict[str, None]()
    for name in names.split(","):
        if name == "all":
            matches = list(known)
        else:
            matches = [full for full in known if full == name or full.partition(":")[2] == name]
        if not matches:
            raise ValueError(_unknown(name, known))
        found.update(dict.fromkeys(matches))
    return tuple(found)


def _unknown(name: str, known: Sequence[str]) -> str:
    words = ["all", *known, *(full.partition(":")[2] for full in known if ":" in full)]
    near = difflib.get_close_matches(name.strip().lower(), dict.fromkeys(words), NEAR_SHOWN)
    if near:
        return f"--policy {name!r} is not known; {' or '.join(near)} may be meant"
    return f"--policy {name!r} is not known; choose from all, {', '.join(known)}"


def deadlines_ms(
    requests: Sequence[Request], fleet: Sequence[PoolSpec], seed: int
) -> tuple[int, ...]:
    """Draws an instant for each job: arrival + s * mean service at full concurrency.

    s is log-uniform between 0.5 and 8: some cannot be met, most depend on the wait.
    """
    rng = random.Random(seed)  # noqa: S311 - made-up deadlines, not secrets
    unit_ms = mean_service_ms(fleet, requests)
    ratio = DEADLINE_MOST / DEADLINE_LEAST
    return tuple(
        int(r.arrival_ms + DEADLINE_LEAST * ratio ** rng.random() * unit_ms) for r in requests
    )


def run_policy(study: Study, name: str) -> Run:
    """Plays the study's trace through one policy. Raises KeyError for an unknown name."""
    begun_s = time.process_time()
    if name in CORE_POLICIES:
        config = {**study.core.config, **CORE_POLICIES[name]}
        core = replace(study.core, config=config)
        run = CoreRun(study.fleet, study.requests, study.deadlines_ms, core).run(name)
    else:
        binding, _, policy = name.partition(":")
        rival = RivalRun(study.fleet, study.requests, study.deadlines_ms, study.seed)
        run = rival.run(Binding(binding), policy)
    return replace(run, cpu_s=time.process_time() - begun_s)


def run_all(study: Study, names: Sequence[str], processes: int) -> list[Run]:
    """Plays every policy, several at a time when `processes` is more than one."""
    if processes <= 1 or len(names) == 1:
        return [run_policy(study, name) for name in names]
    # A fresh process has no threads of the parent's, which a forked one might miss.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(names)), mp_context=context) as pool:
        return list(pool.map(run_policy, [study] * len(names), names))
