"""What a seed means: the fleet, the jobs, and the faults that come over them."""

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from faults.simulation.clients import Plan
from faults.simulation.engine import Kind
from faults.simulation.operator_plan import Deed, by_alias, deeds
from llamaorch_client.options import ExchangeOptions
from llamaorch_client.request import FailoverPolicy
from orchestrator_core.config.schema import Config
from pool_managerd.config.schema import Config as HostConfig

POLICIES = ("reject", "drop-lru", "shed-low-priority")
READY_MS = 5_000
SETTLE_MS = 60_000
RETENTION_MS = 40_000


class Fault(enum.Enum):
    """What may happen."""

    CUT = "a connection breaks"
    STALL = "a connection goes silent, in one direction or both"
    CHOKE = "one call is held up while others on its connection pass"
    REFUSE = "a process cannot connect"
    SLOW_NETWORK = "every message takes long"
    KILL_ORCHESTRATOR = "orchestratord is killed"
    KILL_HOST = "a pool-managerd is killed, with its engines"
    KILL_ENGINE = "an engine dies"
    KILL_ENDED = "an engine dies soon after it ended an attempt"
    KILL_AT_POINT = "a service is killed as it passes a named point"
    KILL_UNSENT = "orchestratord is killed when a continuation is written, and no host has it"
    LEAVE_ORCHESTRATOR = "orchestratord is stopped in order, and started again"
    LEAVE_HOST = "a pool-managerd is stopped in order, and started again"
    REFIT_HOST = "a pool-managerd is started anew without one of its pools, and later with it"
    SICK_DEVICE = "a device of a host is unwell for a time"
    STOP = "a service stops, and goes on after a time"
    TAKE_OVER = "orchestratord stops, another takes its journal over, and it goes on"
    SLOW_DISK = "each commit takes seconds"
    FULL_DISK = "no commit succeeds"
    UNSURE_DISK = "half of the commits have an unknown outcome"


_OFTEN = {
    Fault.CUT: 6,
    Fault.STALL: 5,
    Fault.CHOKE: 5,
    Fault.REFUSE: 2,
    Fault.SLOW_NETWORK: 2,
    Fault.KILL_ORCHESTRATOR: 4,
    Fault.KILL_HOST: 3,
    Fault.KILL_ENGINE: 6,
    Fault.KILL_ENDED: 4,
    Fault.KILL_AT_POINT: 8,
    Fault.LEAVE_ORCHESTRATOR: 2,
    Fault.LEAVE_HOST: 3,
    Fault.REFIT_HOST: 2,
    Fault.SICK_DEVICE: 2,
    Fault.STOP: 4,
    Fault.SLOW_DISK: 2,
    Fault.FULL_DISK: 2,
    Fault.UNSURE_DISK: 3,
}


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault: when, what, for how long, and whom of those there are then."""

    at_ms: int
    fault: Fault
    for_ms: int
    chance: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that a seed decides beforehand.

    Clients and operator begin at `READY_MS`, and at `heal_ms` all faults are healed. With
    `bad_engines` a generation may fail or stall.
    """

    seed: int
    config: Config
    hosts: Mapping[str, tuple[Kind, ...]]
    clients: Mapping[str, list[Plan]]
    exchanges: Mapping[str, ExchangeOptions]
    blows: tuple[Blow, ...]
    heal_ms: int
    bad_engines: bool
    deeds: tuple[Deed, ...]


_WINDOWS_BYTES = (6, 30, 1_024)
"""Of output under way: behind a full one the end of an attempt waits at its host."""
_OF_SESSIONS = 0.25
_WITH_DEADLINES = 0.1
_TAKEN_OVER = 0.2
"""Share of the seeds in which an older orchestratord wakes up beside a newer one."""
_UNSENT = 0.15
"""Share of the seeds in which orchestratord dies between the record and the start of attempts that
continue others. In half of them engines die beside it, and nothing else happens."""

_UNTOLD = 0.15
"""Share of the seeds in which engines die while the ends of what they made wait at their hosts. In
half of them nothing else happens."""


def scenario_of(seed: int) -> Scenario:
    """Draws a scenario."""
    chance = random.Random(f"scenario {seed}")
    span_ms = chance.randint(3_000, 14_000)
    bad = chance.random() < 0.3
    exchange = random.Random(f"exchange {seed}")
    takeover = random.Random(f"takeover {seed}")
    operator = random.Random(f"operator {seed}")
    config = _config(
        chance.choice(POLICIES),
        chance.choice((1, 3, 8)),
        _relay_bytes(random.Random(f"relay {seed}")),
        random.Random(f"window {seed}").choice(_WINDOWS_BYTES),
    )
    hosts = _hosts(chance, bad=bad)
    clients = _on_exchanges(exchange, _clients(chance, span_ms))
    clients = _bound(random.Random(f"bound {seed}"), clients, span_ms)
    pools = [kind.pool for kinds in hosts.values() for kind in kinds]
    todo = deeds(operator, span_ms, pools)
    drawn = Scenario(
        seed=seed,
        config=config,
        hosts=hosts,
        clients=by_alias(operator, clients) if todo else clients,
        exchanges={name: _exchange(exchange) for name in clients},
        blows=_with_takeover(takeover, _blows(chance, span_ms), span_ms),
        heal_ms=READY_MS + span_ms,
        bad_engines=bad,
        deeds=todo,
    )
    drawn = _with_unsent(random.Random(f"unsent {seed}"), drawn, span_ms)
    return _with_untold(random.Random(f"untold {seed}"), drawn, span_ms)


@cache
def _config(policy: str, capacity: int, relay_bytes: int | None, window_bytes: int) -> Config:
    config = Config.model_validate(
        {
            "queue": {"capacity": capacity, "policy": policy, "timeout_ms": 600_000},
            "jobs": {
                "retention_ms": RETENTION_MS,
                "attempts_max": 40,
                "idle_timeout_ms": 25_000,
                "disconnect_grace_ms": 2_000,
            },
            "pools": {
                "report_interval_ms": 3_000,
                "heartbeat_timeout_ms": 6_000,
                "reattach_grace_ms": 8_000,
            },
            "placement": {"stale_after_ms": 6_000},
        }
    )
    # Below what anybody may configure, so that bounds are met with little output.
    jobs, pools = config.jobs, config.pools
    if relay_bytes is not None:
        jobs = jobs.model_copy(update={"output_bytes_per_job": relay_bytes})
    pools = pools.model_copy(update={"send_window_bytes": window_bytes})
    return config.model_copy(update={"jobs": jobs, "pools": pools})


def _hosts(chance: random.Random, *, bad: bool) -> dict[str, tuple[Kind, ...]]:
    hosts = {}
    for number in range(1, chance.randint(2, 3) + 1):
        host = f"host{number}"
        hosts[host] = tuple(
            _kind(chance, host, f"{host}-p{pool}", deterministic=number < 3 and pool == 1, bad=bad)
            for pool in range(1, chance.randint(1, 2) + 1)
        )
    return hosts


def _kind(chance: random.Random, host: str, pool: str, *, deterministic: bool, bad: bool) -> Kind:
    return Kind(
        host=host,
        pool=pool,
        slots=1 if deterministic else chance.randint(1, 4),
        deterministic=deterministic,
        token_ms=chance.choice((10.0, 60.0, 300.0)),
        start_ms=chance.choice((5.0, 500.0, 3_000.0)),
        preload_fails=0.1 if bad else 0.0,
        fails=0.05 if bad else 0.0,
        stalls=0.05 if bad else 0.0,
        unconfirmed=0.1 if bad else 0.0,
    )


@cache
def host_config(host_id: str, pools: tuple[str, ...]) -> HostConfig:
    """The configuration of a host with these pools."""
    return HostConfig.model_validate(
        {
            "host_id": host_id,
            "devices": "cpu",
            "report_interval_ms": 3_000,
            "limits": {"send_window_bytes": 1_024},
            "link": {"backoff": {"initial_ms": 50, "cap_ms": 2_000}, "connect_timeout_ms": 5_000},
            "supervision": {
                "backoff": {"initial_ms": 50, "cap_ms": 2_000},
                "storm_failures": 1_000,
                "cancel_confirm_ms": 1_000,
                "stop_timeout_ms": 2_000,
                "health_interval_ms": 10_000,
            },
            "pools": [{"pool_id": pool, "engine": {"kind": "mock"}} for pool in pools],
        }
    )


def _clients(chance: random.Random, span_ms: int) -> dict[str, list[Plan]]:
    jobs = chance.randint(2, 8)
    names = [f"client{number}" for number in range(1, chance.randint(1, 3) + 1)]
    plans: dict[str, list[Plan]] = {name: [] for name in names}
    burst = chance.random() < 0.4
    for number in range(jobs):
        at_ms = chance.randrange(500 if burst else span_ms * 3 // 4)
        plans[chance.choice(names)].append(_plan(chance, f"r{number}", at_ms))
    return plans


def _plan(chance: random.Random, request_id: str, at_ms: int) -> Plan:
    def sometimes(share: float, upto_ms: int) -> int | None:
        drawn_ms = chance.randrange(upto_ms)
        return drawn_ms if chance.random() < share else None

    return Plan(
        request_id=request_id,
        at_ms=at_ms,
        tokens=chance.choice((1, 3, 6, 14)),
        seed=chance.randint(1, 1_000),
        batch=chance.random() < 0.3,
        deterministic=(deterministic := chance.random() < 0.5),
        failover=_failover(chance.random(), deterministic=deterministic),
        cancel_on_disconnect=chance.random() < 0.15,
        repeat_after_ms=sometimes(0.3, 3_000),
        cancel_after_ms=sometimes(0.2, 4_000),
        leave_after_ms=sometimes(0.2, 3_000),
        readers=chance.choice((1, 1, 1, 2)),
        looks_ms=tuple(chance.randrange(8_000) for _ in range(chance.choice((0, 0, 1, 2)))),
    )


def _failover(drawn: float, *, deterministic: bool) -> FailoverPolicy:
    if drawn >= 0.8:
        return FailoverPolicy.FAIL
    # Where the same output is required, it cannot be continued by another engine.
    continues = not deterministic and drawn < 0.7
    return FailoverPolicy.CONTINUE if continues else FailoverPolicy.VERIFIED_REPLAY


def _on_exchanges(
    chance: random.Random, clients: Mapping[str, list[Plan]]
) -> dict[str, list[Plan]]:
    """Half of the clients have an exchange, and most of their jobs on it. Some read slowly."""
    given = {}
    for name, plans in clients.items():
        share = chance.choice((0.0, 0.8))
        given[name] = [
            replace(
                plan,
                exchange=chance.random() < share,
                pause_ms=chance.choice((0, 0, 0, 400)),
                late_ms=chance.choice((0, 2_000, 6_000)),
            )
            for plan in plans
        ]
    return given


def _bound(
    chance: random.Random, clients: Mapping[str, list[Plan]], span_ms: int
) -> dict[str, list[Plan]]:
    """Some jobs belong to a conversation of their client, and some have a deadline."""
    return {
        name: [
            replace(
                plan,
                session=f"{name}-s{chance.randint(1, 2)}" if chance.random() < _OF_SESSIONS else "",
                deadline_ms=(
                    READY_MS + plan.at_ms + chance.randint(200, span_ms)
                    if chance.random() < _WITH_DEADLINES
                    else None
                ),
            )
            for plan in plans
        ]
        for name, plans in clients.items()
    }


def _exchange(chance: random.Random) -> ExchangeOptions:
    return ExchangeOptions(
        credit_bytes=chance.choice((4, 64, 1 << 18)), acknowledge=chance.random() < 0.7
    )


def _blows(chance: random.Random, span_ms: int) -> tuple[Blow, ...]:
    kinds, weights = list(_OFTEN), list(_OFTEN.values())
    blows = [
        Blow(
            at_ms=READY_MS + chance.randrange(span_ms),
            fault=chance.choices(kinds, weights)[0],
            for_ms=chance.choice((20, 300, 2_000, 7_000)),
            chance=chance.random(),
        )
        for _ in range(chance.randint(1, 7))
    ]
    return tuple(sorted(blows, key=lambda blow: blow.at_ms))


def _relay_bytes(chance: random.Random) -> int | None:
    """Often a few pieces of output: all else is read from the host again by those who are late."""
    return chance.choice((100, 300)) if chance.random() < 0.4 else None


def _with_takeover(
    chance: random.Random, blows: tuple[Blow, ...], span_ms: int
) -> tuple[Blow, ...]:
    """Others strike meanwhile, so it begins early enough to be seen to its end."""
    if chance.random() >= _TAKEN_OVER:
        return blows
    blow = Blow(
        at_ms=READY_MS + chance.randrange(span_ms // 2),
        fault=Fault.TAKE_OVER,
        for_ms=chance.choice((1_600, 3_000, 8_000)),
        chance=chance.random(),
    )
    return tuple(sorted((*blows, blow), key=lambda blow: blow.at_ms))


def _with_unsent(chance: random.Random, drawn: Scenario, span_ms: int) -> Scenario:
    """Jobs that may be continued are, and engines die early enough for it."""
    if chance.random() >= _UNSENT:
        return drawn
    blows = drawn.blows if chance.random() < 0.5 else ()
    blows += tuple(
        Blow(READY_MS, Fault.KILL_UNSENT, chance.choice((20, 300, 2_000)), chance.random())
        for _ in range(chance.randint(1, 2))
    )
    blows += tuple(
        Blow(READY_MS + chance.randrange(300, span_ms), Fault.KILL_ENGINE, 0, chance.random())
        for _ in range(chance.randint(3, 6))
    )
    clients = {
        name: [plan if plan.deterministic else _continued(plan) for plan in plans]
        for name, plans in drawn.clients.items()
    }
    return replace(drawn, blows=tuple(sorted(blows, key=lambda b: b.at_ms)), clients=clients)


def _with_untold(chance: random.Random, drawn: Scenario, span_ms: int) -> Scenario:
    """Engines are faster than what they make is read, and die soon after an end that waits."""
    if chance.random() >= _UNTOLD:
        return drawn
    blows = drawn.blows if chance.random() < 0.5 else ()
    for _ in range(chance.randint(2, 4)):
        at_ms = READY_MS + chance.randrange(span_ms)
        slow = chance.choice((Fault.CHOKE, Fault.CHOKE, Fault.SLOW_NETWORK))
        held_ms, ended_ms = chance.choice((300, 2_000, 7_000)), chance.randrange(200)
        blows += (
            Blow(at_ms, slow, held_ms, chance.random()),
            Blow(at_ms + ended_ms, Fault.KILL_ENDED, 0, chance.random()),
        )
    hosts = {host: tuple(map(_quick, kinds)) for host, kinds in drawn.hosts.items()}
    pools = drawn.config.pools.model_copy(update={"send_window_bytes": min(_WINDOWS_BYTES)})
    return replace(
        drawn,
        blows=tuple(sorted(blows, key=lambda blow: blow.at_ms)),
        hosts=hosts,
        config=drawn.config.model_copy(update={"pools": pools}),
    )


def _quick(kind: Kind) -> Kind:
    return replace(kind, token_ms=10.0, start_ms=5.0)


def _continued(plan: Plan) -> Plan:
    return replace(plan, failover=FailoverPolicy.CONTINUE)
