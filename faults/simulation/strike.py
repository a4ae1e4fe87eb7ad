"""What each fault of a scenario does to the world."""

import random
from collections.abc import Callable, Mapping

import orchestrator_core.failpoints
import pool_managerd.failpoints
from faults.simulation.disk import Condition
from faults.simulation.mines import Mine, Takeover, Unsent
from faults.simulation.network import KEEPALIVE_S
from faults.simulation.scenario import Blow, Fault
from faults.simulation.world import World

_DISKS = {
    Fault.SLOW_DISK: Condition(write_ms=1_500.0),
    Fault.FULL_DISK: Condition(write_ms=1.0, refused=1.0),
    Fault.UNSURE_DISK: Condition(write_ms=20.0, unknown=0.5, refused=0.2, unreadable=0.3),
}


def _lay(world: World, blow: Blow, draw: random.Random) -> None:
    """Kills a service at a point, or orchestratord with a continuation that no host has."""
    if blow.fault is Fault.KILL_UNSENT:
        name = draw.choice(("commit.after", "send.start.before"))
        world.lay_unsent(Unsent(name, draw.randint(1, 3), blow.for_ms, _notice_s(draw)))
        return
    points = draw.choice((orchestrator_core.failpoints, pool_managerd.failpoints)).POINTS
    name, passes = draw.choice(sorted(points)), draw.randint(1, 4)
    world.lay(Mine(points, name, passes, blow.for_ms, _notice_s(draw)))


def _stop(world: World, blow: Blow, draw: random.Random) -> None:
    """Stops a service, or orchestratord while another takes its journal over."""
    if blow.fault is Fault.STOP:
        world.stop(draw.random(), blow.for_ms)
        return
    takeover = Takeover(
        stopped_ms=blow.for_ms,
        begins_ms=draw.randrange(blow.for_ms),
        cut_off_ms=draw.choice((0, 0, 1_000, 2_000)),
        trusting=draw.random() < 0.5,
        notice_s=draw.choice((0.0, 0.1, KEEPALIVE_S)),
    )
    world.take_over(takeover)


def _disturb(world: World, blow: Blow, draw: random.Random) -> None:
    """Breaks one connection, or lets it go silent."""
    connection = world.weather.connection(draw.random())
    if connection is None:
        return
    world.tally.cuts += 1
    if blow.fault is Fault.CUT:
        world.network.cut(connection, _notice_s(draw), _notice_s(draw))
    else:
        up, down = draw.choice(((True, True), (True, False), (False, True)))
        world.weather.stall(connection, up=up, down=down, for_ms=blow.for_ms)


def _notice_s(draw: random.Random) -> float:
    """When a side finds out: at once, or as late as a transport that pings."""
    return draw.choice((0.0, 0.002, 0.1, 3.0, KEEPALIVE_S))


def _disk(world: World, blow: Blow, _: random.Random) -> None:
    world.weather.disk(_DISKS[blow.fault], blow.for_ms)


def _host(world: World, draw: random.Random) -> str:
    return draw.choice(list(world.hosts))


_STRIKES: Mapping[Fault, Callable[[World, Blow, random.Random], None]] = {
    Fault.CUT: _disturb,
    Fault.STALL: _disturb,
    Fault.CHOKE: lambda world, blow, draw: world.weather.choke(
        draw.random(), up=draw.random() < 0.5, for_ms=blow.for_ms
    ),
    Fault.REFUSE: lambda world, blow, draw: world.refuse(draw.random(), blow.for_ms),
    Fault.SLOW_NETWORK: lambda world, blow, draw: world.weather.slow_network(
        draw.choice((10.0, 200.0)), blow.for_ms
    ),
    Fault.KILL_ORCHESTRATOR: lambda world, blow, draw: world.kill_orchestrator(
        blow.for_ms, _notice_s(draw)
    ),
    Fault.KILL_HOST: lambda world, blow, draw: world.kill_host(
        _host(world, draw), blow.for_ms, _notice_s(draw)
    ),
    Fault.KILL_ENGINE: lambda world, _blow, draw: world.kill_engine(draw.random()),
    Fault.KILL_ENDED: lambda world, _blow, draw: world.lay_ended(
        draw.choice((1, 1, 2)), draw.choice((0, 2, 50, 300))
    ),
    Fault.KILL_AT_POINT: _lay,
    Fault.KILL_UNSENT: _lay,
    Fault.STOP: _stop,
    Fault.TAKE_OVER: _stop,
    Fault.LEAVE_ORCHESTRATOR: lambda world, blow, _: world.leave_orchestrator(blow.for_ms),
    Fault.LEAVE_HOST: lambda world, blow, draw: world.leave_host(_host(world, draw), blow.for_ms),
    Fault.REFIT_HOST: lambda world, blow, draw: world.refit_host(
        _host(world, draw), blow.for_ms, draw.random()
    ),
    Fault.SICK_DEVICE: lambda world, blow, draw: world.sicken(_host(world, draw), blow.for_ms),
    Fault.SLOW_DISK: _disk,
    Fault.FULL_DISK: _disk,
    Fault.UNSURE_DISK: _disk,
}


def strike(world: World, blow: Blow) -> None:
    """Does what a fault says, to whom its `chance` names."""
    _STRIKES[blow.fault](world, blow, random.Random(blow.chance))
