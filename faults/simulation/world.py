"""Everything that lives in one run, and what can be done to it."""

import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial

import orchestrator_core.failpoints
import pool_managerd.failpoints
from faults import history as h
from faults import operator_events as o
from faults.simulation.calls import ClientCall
from faults.simulation.clients import SimulatedClient
from faults.simulation.disk import Disk
from faults.simulation.engine import SimulatedEngine
from faults.simulation.heard import Pair
from faults.simulation.host import SimulatedHost
from faults.simulation.journal_seen import tell_durable
from faults.simulation.mines import Ended, Mine, Takeover, Unsent
from faults.simulation.network import Network
from faults.simulation.operator import Operator
from faults.simulation.orchestrator import ADDRESS, Orchestrator
from faults.simulation.recorder import Recorder
from faults.simulation.scenario import Scenario, host_config
from faults.simulation.settings import SettingsFile
from faults.simulation.virtual_time import CURRENT, Killed, Process, VirtualLoop
from faults.simulation.weather import Weather, pick
from llamaorch.pool.v1.pool_registry_service_pb2 import DispatchRequest, DispatchResponse
from orchestrator_core.core.records import DispatchRecord, Record
from orchestrator_core.core.spec import StartMode

_SENT_AGAIN = 0.2
_LATE_S = (0.05, 0.5, 3.0, 12.0)
_TAKEOVER_MS = 1_500
_STOP_GRACE_MS = 1_000
_RESTART_MS = 20


@dataclass(slots=True)
class Tally:
    """What was done to the system in one run."""

    kills: int = 0
    cuts: int = 0
    blows: int = 0
    takeovers: int = 0
    unsent: int = 0


class World:
    """The processes of a run. All methods but the constructor need the running loop."""

    def __init__(self, scenario: Scenario, loop: VirtualLoop, recorder: Recorder) -> None:
        self.scenario = scenario
        self.tally = Tally()
        self._loop = loop
        self._recorder = recorder
        self._chance = random.Random(f"world {scenario.seed}")
        self.network = Network(random.Random(f"network {scenario.seed}"))
        self.network.copies = self._copies
        self.network.seen = self._seen
        self._late = random.Random(f"late {scenario.seed}")
        self._epochs: dict[ClientCall, int] = {}
        self._replaced: list[Orchestrator] = []
        self._orchestrators: list[Orchestrator] = []
        self._disk = Disk(random.Random(f"disk {scenario.seed}"), self._durable)
        self.weather = Weather(self.network, self._disk, self._later, self._late)
        self.orchestrator: Orchestrator | None = None
        self.hosts: dict[str, SimulatedHost] = {}
        self.clients = [
            SimulatedClient(
                name,
                plans,
                scenario.exchanges[name],
                recorder,
                random.Random(f"{name} {scenario.seed}"),
            )
            for name, plans in scenario.clients.items()
        ]
        self.file = SettingsFile(scenario.config)
        pools = [kind.pool for kinds in scenario.hosts.values() for kind in kinds]
        self.operator = Operator(scenario.deeds, pools, self.file, recorder)
        self._healed = True
        self._mines: list[Mine] = []
        self._unsent: list[Unsent] = []
        self._ended: list[Ended] = []
        self._left_out: dict[str, str] = {}
        self._leaving: list[Orchestrator | SimulatedHost] = []

    # --- life and death

    def start(self) -> None:
        """Starts both services everywhere."""
        self._recorder.record(None, o.FileWritten, mark=self.file.mark, good=True)
        self._start_orchestrator()
        for host_id in self.scenario.hosts:
            self._start_host(host_id)

    def _start_orchestrator(self) -> None:
        life = self.orchestrator = Orchestrator(self.file, self._disk, self.network, self._recorder)
        self._orchestrators.append(life)
        life.process.spawn(self._lives(life))

    async def _lives(self, life: Orchestrator) -> None:
        """Only one whose journal another has taken ends by itself."""
        try:
            await life.start(self._loop)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            self.network.bugs.append(f"{ADDRESS} broke: {error!r}")
        if life in self._replaced:
            # Nothing may run after the freeze that belongs to what is frozen.
            self.network.later(0.0, lambda: self._end(life))
        else:
            self.network.bugs.append(f"{ADDRESS} ended by itself")

    def _end(self, life: Orchestrator) -> None:
        self._loop.freeze(life.process)
        self.network.died(life.process, 0.0)

    def _start_host(self, host_id: str) -> None:
        left_out = self._left_out.get(host_id)
        kinds = [kind for kind in self.scenario.hosts[host_id] if kind.pool != left_out]
        config = host_config(host_id, tuple(kind.pool for kind in kinds))
        chance = random.Random(self._chance.random())
        life = self.hosts[host_id] = SimulatedHost(
            config, kinds, self._recorder, chance, self._attempt_ended
        )
        life.heal(healed=self._healed)
        life.process.spawn(self._watched(life.start(self._loop), host_id))

    async def _watched(self, life: Coroutine[object, object, None], name: str) -> None:
        """A process that ends by itself, or raises, is a bug."""
        try:
            await life
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            self.network.bugs.append(f"{name} broke: {error!r}")
        else:
            if self.hosts[name] not in self._leaving:
                self.network.bugs.append(f"{name} ended by itself")

    def kill_orchestrator(self, down_ms: int, notice_s: float) -> None:
        """Kills orchestratord and starts it again after a time."""
        life = self.orchestrator
        if life is None or not life.process.alive:
            return
        self.tally.kills += 1
        self._recorder.record(None, h.Crashed, process=ADDRESS)
        self._loop.freeze(life.process)
        self.network.died(life.process, notice_s)
        self._disk.crash(life.store)
        self._later(down_ms, self._restart_orchestrator)

    def take_over(self, takeover: Takeover) -> None:
        """Stops orchestratord, starts another on its journal, and lets the first go on."""
        old, left_ms = self.orchestrator, self.scenario.heal_ms - self._loop.now_ms
        if old is None or not (old.process.running and old.listening) or left_ms < _TAKEOVER_MS:
            return
        self.tally.takeovers += 1
        self._loop.pause(old.process)
        old.trusting = takeover.trusting
        self._cut_half(old, takeover.notice_s)
        stopped_ms = min(takeover.stopped_ms, left_ms)
        begins_ms = min(takeover.begins_ms, stopped_ms - 1)
        self._later(begins_ms, lambda: self._replace(old))
        self._later(stopped_ms, lambda: self._wake(old, takeover.cut_off_ms))

    def _replace(self, old: Orchestrator) -> None:
        if old is self.orchestrator and old.process.alive:
            self._replaced.append(old)
            self._restart_orchestrator()

    def _cut_half(self, life: Orchestrator, notice_s: float) -> None:
        """Breaks half of the connections to an orchestratord, as when an address moves."""
        for connection in self.network.connections:
            if connection.server.process is life.process and self._late.random() < 0.5:
                self.network.cut(connection, notice_s, notice_s)

    def _wake(self, old: Orchestrator, cut_off_ms: int) -> None:
        if not old.process.alive:
            return
        if old in self._replaced:
            old.store.cut_off = True
            self._later(cut_off_ms, lambda: setattr(old.store, "cut_off", False))
            assert self.orchestrator is not None, "it has started"
            self._cut_half(self.orchestrator, 0.0)
        self._loop.resume(old.process)

    def replaced_are_gone(self) -> None:
        """Who was replaced must have found out by now."""
        for old in self._replaced:
            if old.process.alive:
                self.network.bugs.append("an older orchestratord still serves")

    def _restart_orchestrator(self) -> None:
        self._recorder.record(None, h.Restarted, process=ADDRESS)
        self._start_orchestrator()

    def kill_host(self, host_id: str, down_ms: int, notice_s: float) -> None:
        """Kills a pool-managerd with its engines, and starts it again after a time."""
        life = self.hosts[host_id]
        if not life.process.alive:
            return
        self.tally.kills += 1
        life.killed()
        self._recorder.record(None, h.Crashed, process=host_id)
        self._loop.freeze(life.process)
        self.network.died(life.process, notice_s)
        self._later(down_ms, lambda: self._restart_host(host_id))

    def _restart_host(self, host_id: str) -> None:
        self._recorder.record(None, h.Restarted, process=host_id)
        self._start_host(host_id)

    def refit_host(self, host_id: str, for_ms: int, chosen: float) -> None:
        """Starts a pool-managerd anew without one of its pools, and after a time with all."""
        kinds = self.scenario.hosts[host_id]
        if len(kinds) > 1 and host_id not in self._left_out and self.hosts[host_id].process.alive:
            pool_id = self._left_out[host_id] = pick(kinds, chosen).pool
            self._recorder.record(None, o.PoolLeftOut, pool=pool_id)
            self.kill_host(host_id, _RESTART_MS, 0.0)
            self._later(_RESTART_MS + for_ms, lambda: self._fit(host_id))

    def _fit(self, host_id: str) -> None:
        del self._left_out[host_id]
        self.kill_host(host_id, _RESTART_MS, 0.0)

    def leave_orchestrator(self, down_ms: int) -> None:
        """Stops orchestratord in order, and starts it again after a time."""
        life = self.orchestrator
        if life is not None and life.process.running and life not in self._leaving:
            self._leaving.append(life)
            life.process.spawn(self._left(life, lambda: self.kill_orchestrator(down_ms, 0.0)))

    def leave_host(self, host_id: str, down_ms: int) -> None:
        """Stops a pool-managerd in order, and starts it again after a time."""
        life = self.hosts[host_id]
        if life.process.running and life not in self._leaving:
            self._leaving.append(life)
            life.process.spawn(self._left(life, lambda: self.kill_host(host_id, down_ms, 0.0)))

    async def _left(self, life: Orchestrator | SimulatedHost, end: Callable[[], None]) -> None:
        await life.leave(_STOP_GRACE_MS)
        # Nothing may run after the freeze that belongs to what is frozen.
        self.network.later(0.0, lambda: end() if self._serves(life) else None)

    def _serves(self, life: Orchestrator | SimulatedHost) -> bool:
        present = self.orchestrator, *self.hosts.values()
        return life.process.alive and life in present

    def sicken(self, host_id: str, for_ms: int) -> None:
        """Lets the devices of a host be unwell for a time."""
        life = self.hosts[host_id]
        if life.process.alive:
            life.process.run(lambda: life.sicken("it has fallen off the bus (injected)"))
            self._later(for_ms, lambda: self._well(life))

    def _well(self, life: SimulatedHost) -> None:
        if life.process.alive:
            life.process.run(lambda: life.sicken(""))

    def stop(self, chosen: float, for_ms: int) -> None:
        """Stops one service and lets it go on after a time."""
        assert self.orchestrator is not None, "it has started"
        lives = [self.orchestrator.process, *(host.process for host in self.hosts.values())]
        process = pick(lives, chosen)
        if process.running:
            self._loop.pause(process)
            self._later(for_ms, lambda: self._go_on(process))

    def _go_on(self, process: Process) -> None:
        if process.alive:
            self._loop.resume(process)

    def kill_engine(self, chosen: float) -> None:
        """Ends one engine that runs; one that works, if any does."""
        engines = [
            engine
            for host in self.hosts.values()
            if host.process.alive
            for engine in host.engines
            if engine.running
        ]
        if engines:
            self.tally.kills += 1
            pick([engine for engine in engines if engine.busy] or engines, chosen).die()

    def lay_ended(self, attempts: int, after_ms: int) -> None:
        """Waits for ends of attempts, and then ends the engine."""
        self._ended.append(Ended(attempts, after_ms))

    def _attempt_ended(self, engine: SimulatedEngine) -> None:
        for mine in () if self._healed else tuple(self._ended):
            mine.attempts -= 1
            if mine.attempts == 0:
                self._ended.remove(mine)
                self.tally.kills += 1
                self.network.later(mine.after_ms / 1000, engine.die)

    def lay(self, mine: Mine) -> None:
        """Waits for a service to pass a point."""
        self._mines.append(mine)

    def passes(self, name: str) -> None:
        """A service passes a point."""
        process = CURRENT.get()
        if process is None or not process.alive or self._healed or self._was_replaced(process):
            return
        points = orchestrator_core if process.name == ADDRESS else pool_managerd
        if process.name == ADDRESS:
            self._passes_unsent(name)
        for mine in self._mines:
            if mine.name == name and mine.points is points.failpoints.POINTS:
                mine.passes -= 1
                if mine.passes == 0:
                    self._mines.remove(mine)
                    self._blow_up(process, mine)
                    raise Killed

    def lay_unsent(self, mine: Unsent) -> None:
        """Waits for continuations."""
        self._unsent.append(mine)

    def _passes_unsent(self, name: str) -> None:
        for mine in self._unsent:
            if mine.name == name and mine.continuations <= 0:
                self._unsent.remove(mine)
                self.tally.unsent += 1
                self.kill_orchestrator(mine.down_ms, mine.notice_s)
                raise Killed

    def _was_replaced(self, process: Process) -> bool:
        return any(old.process is process for old in self._replaced)

    def _blow_up(self, process: Process, mine: Mine) -> None:
        if process.name == ADDRESS:
            self.kill_orchestrator(mine.down_ms, mine.notice_s)
        else:
            self.kill_host(process.name, mine.down_ms, mine.notice_s)

    def let_loose(self) -> None:
        """From now on engines may have faults of their own."""
        self._healed = False
        for host in self.hosts.values():
            host.heal(healed=False)

    # --- messages

    def _copies(self, message: object) -> Sequence[float]:
        """Now and then a start arrives again, at once or when its attempt may be over."""
        start = isinstance(message, DispatchResponse) and message.HasField("start")
        if not start or self._healed:
            return (0.0,)
        again = (0.0,) if self._chance.random() < _SENT_AGAIN else ()
        late = (self._late.choice(_LATE_S),) if self._late.random() < _SENT_AGAIN else ()
        return (0.0, *again, *late)

    def _seen(self, process: Process, call: ClientCall, message: object) -> None:
        """Notes which orchestrator a host obeys: one on whose stream it sends what it has."""
        if isinstance(message, DispatchResponse) and message.HasField("registered"):
            self._epochs[call] = message.registered.epoch
        elif isinstance(message, DispatchRequest) and call in self._epochs:
            epoch = self._epochs.pop(call)
            self._recorder.record(process, h.Obeyed, host=process.name, epoch=epoch)

    def heal(self) -> None:
        """Nothing new is injected, and what can be mended is. What hangs is still to be found."""
        self._healed = True
        self.weather.clear_up()
        for host in self.hosts.values():
            host.heal(healed=True)
        self._recorder.record(None, h.Healed)

    def refuse(self, chosen: float, for_ms: int) -> None:
        """Lets one host or client not connect for a time."""
        names = [*self.hosts, *(client.process.name for client in self.clients)]
        self.weather.refuse(pick(names, chosen), for_ms)

    def _later(self, wait_ms: int, call: Callable[[], None]) -> None:
        """Everything that was begun is over when faults are healed."""
        left_ms = max(0, self.scenario.heal_ms - self._loop.now_ms)
        self.network.later(min(wait_ms, left_ms) / 1000, call)

    # --- what outsiders see

    def replay(self) -> None:
        """Every orchestratord must have decided as another core does."""
        for number, life in enumerate(self._orchestrators, start=1):
            if difference := life.core.replayed():
                self.network.bugs.append(f"replay of life {number}: {difference}")

    def heard(self) -> Counter[Pair]:
        """The orders in which the orchestrators of the run heard of pools."""
        return sum((life.core.heard.pairs for life in self._orchestrators), Counter())

    def measure(self, *, before: bool) -> None:
        """Writes down what each process holds."""
        assert self.orchestrator is not None, "it has started"
        lives: list[Orchestrator | SimulatedHost] = [self.orchestrator, *self.hosts.values()]
        for life in lives:
            self._recorder.record(
                None,
                h.Measured,
                process=life.process.name,
                before=before,
                measures=life.measures(),
            )

    def _durable(self, record: Record, epoch: int) -> None:
        if isinstance(record, DispatchRecord) and record.mode is StartMode.CONTINUE:
            for mine in self._unsent:
                mine.continuations -= 1
        tell_durable(record, epoch, partial(self._recorder.record, None))
