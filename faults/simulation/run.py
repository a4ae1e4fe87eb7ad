"""One run: `simulate(seed)` gives its history, and the same one each time."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orchestrator_core.failpoints
import pool_managerd.failpoints
from faults import history as h
from faults.checker import Expect, Violation, check
from faults.operator_events import ActSent
from faults.operator_rules import MODEL_RETIRED
from faults.simulation.clients import Plan
from faults.simulation.engine import text_of
from faults.simulation.heard import Pair
from faults.simulation.recorder import Recorder
from faults.simulation.scenario import (
    READY_MS,
    RETENTION_MS,
    SETTLE_MS,
    Fault,
    Scenario,
    scenario_of,
)
from faults.simulation.sealed import sealed
from faults.simulation.strike import strike
from faults.simulation.virtual_time import Killed, StuckError, VirtualLoop
from faults.simulation.world import World
from llamaorch_client.request import FailoverPolicy

_PATIENCE_MS = 60_000


_SPARE_TEXT = frozenset(
    {
        Fault.KILL_ENGINE,
        Fault.KILL_ENDED,
        Fault.KILL_UNSENT,
        Fault.SLOW_DISK,
        Fault.FULL_DISK,
        Fault.UNSURE_DISK,
        Fault.SLOW_NETWORK,
    }
)


@dataclass(slots=True)
class Stats:
    """What one run was. `ends` counts terminal states, `heard` the orders of words about pools."""

    seed: int
    virtual_ms: int = 0
    jobs: int = 0
    kills: int = 0
    cuts: int = 0
    blows: int = 0
    takeovers: int = 0
    unsent: int = 0
    acts: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    heard: Counter[Pair] = field(default_factory=Counter)


@dataclass(slots=True)
class Run:
    """A run and what is wrong with it: broken invariants, and errors that nobody should see."""

    history: h.History
    stats: Stats
    violations: list[Violation]
    bugs: list[str]

    @property
    def good(self) -> bool:
        """True when nothing is wrong."""
        return not self.violations and not self.bugs


def simulate(seed: int) -> Run:
    """Runs a seed to its end, a few ten milliseconds of one core."""
    return play(scenario_of(seed))


def play(scenario: Scenario) -> Run:
    """Runs a scenario to its end. Its seed says what chance does in it."""
    seed = scenario.seed
    loop = VirtualLoop()
    recorder = Recorder(loop)
    world = World(scenario, loop, recorder)
    bugs = world.network.bugs
    loop.set_exception_handler(lambda _, context: _unhandled(context, bugs))
    with sealed(random.Random(f"entropy {seed}"), world.network.channel, bugs):
        for points in (orchestrator_core.failpoints, pool_managerd.failpoints):
            points.watch(world.passes)
        try:
            loop.run_until_complete(_play(world))
        except StuckError as error:
            bugs.append(str(error))
        finally:
            for points in (orchestrator_core.failpoints, pool_managerd.failpoints):
                points.watch(None)
            loop.clean_up()
            loop.close()
    world.replay()
    return _judged(world, recorder, loop.now_ms)


def _unhandled(context: dict[str, Any], bugs: list[str]) -> None:
    """An error that nobody handles is a bug; being killed is none."""
    if not isinstance(context.get("exception"), Killed):
        bugs.append(repr(context))


async def _play(world: World) -> None:
    loop = asyncio.get_running_loop()
    world.start()
    await asyncio.sleep(READY_MS / 1000)
    world.measure(before=True)
    world.let_loose()
    clients = [client.process.spawn(client.run()) for client in world.clients]
    if world.scenario.deeds:
        clients.append(world.operator.process.spawn(world.operator.run()))
    for blow in world.scenario.blows:
        await asyncio.sleep(max(0.0, blow.at_ms / 1000 - loop.time()))
        world.tally.blows += 1
        strike(world, blow)
    await asyncio.sleep(max(0.0, world.scenario.heal_ms / 1000 - loop.time()))
    world.heal()
    clients += [client.process.spawn(client.last_look()) for client in world.clients]
    if world.scenario.deeds:
        clients.append(world.operator.process.spawn(world.operator.tidy_up()))
    await _over(world, clients, SETTLE_MS + _PATIENCE_MS)
    await asyncio.sleep(RETENTION_MS / 1000 + 1)
    world.replaced_are_gone()
    world.measure(before=False)


async def _over(world: World, tasks: list[asyncio.Task[None]], limit_ms: int) -> None:
    """Waits for clients, who have bounds of their own."""
    done, late = await asyncio.wait(tasks, timeout=limit_ms / 1000)
    world.network.bugs.extend(f"a client broke: {t.exception()!r}" for t in done if t.exception())
    world.network.bugs.extend("a client was not done in time" for _ in late)


def _judged(world: World, recorder: Recorder, virtual_ms: int) -> Run:
    history, scenario = recorder.history, world.scenario
    accepted = [event for event in history if isinstance(event, h.JournalAccepted)]
    ended = _ended(history)
    acts = sum(isinstance(event, ActSent) for event in history)
    tally = world.tally
    stats = Stats(
        seed=scenario.seed,
        virtual_ms=virtual_ms,
        jobs=len(accepted),
        kills=tally.kills,
        cuts=tally.cuts,
        blows=tally.blows,
        takeovers=tally.takeovers,
        unsent=tally.unsent,
        acts=acts,
        ends=Counter(ended.values()),
        heard=world.heard(),
    )
    safe = [event.job_id for event in accepted if _safe(scenario, event, ended)]
    expect = Expect(
        texts=_texts(scenario, accepted),
        tokens={job.job_id: _plans(scenario)[job.request_id].tokens for job in accepted},
        must_finish=safe,
        settle_ms=SETTLE_MS,
        retention_ms=RETENTION_MS,
        drop_lru=scenario.config.queue.policy == "drop-lru",
    )
    return Run(history, stats, check(history, expect), world.network.bugs)


def _safe(scenario: Scenario, job: h.JournalAccepted, ended: Mapping[str, str]) -> bool:
    """True for a job that every fault must spare: its text can be made again, to the byte.

    It may have been cancelled, dropped or too late, and an engine that stalls may cost it its time.
    One that is continued is spared by faults that leave services and network alone: its text is
    somewhere.
    Whether the grace of its model was over is another rule's concern.
    """
    plan = _plans(scenario)[job.request_id]
    state = ended.get(job.job_id)
    if state in ("CANCELLED", "DROPPED", MODEL_RETIRED) or scenario.bad_engines:
        return False
    if state == "EXPIRED" and plan.deadline_ms is not None:
        return False
    if plan.failover is FailoverPolicy.CONTINUE:
        return all(blow.fault in _SPARE_TEXT for blow in scenario.blows)
    return plan.deterministic and plan.failover is FailoverPolicy.VERIFIED_REPLAY


def _ended(history: h.History) -> dict[str, str]:
    """The terminal state of each job; of one that failed for its model, the reason."""
    return {
        event.job_id: MODEL_RETIRED if event.reason == MODEL_RETIRED else event.state
        for event in history
        if isinstance(event, h.JournalEnded)
    }


def _plans(scenario: Scenario) -> dict[str, Plan]:
    return {plan.request_id: plan for plans in scenario.clients.values() for plan in plans}


def _texts(scenario: Scenario, accepted: list[h.JournalAccepted]) -> dict[str, str]:
    """The output of jobs that only engines in the deterministic profile may run."""
    plans = _plans(scenario)
    return {
        event.job_id: "".join(text_of(plan.prompt, plan.seed, plan.tokens))
        for event in accepted
        if (plan := plans[event.request_id]).deterministic
    }
