"""The real core on virtual time: its effects move simulated pools, their events come back.

Nothing here decides anything. The journal is instant, the network takes no time, every pool is
on one host, and the host reports once per `report_every_ms` while jobs exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import Enum
from typing import Any

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.effects import (
    ConfirmEnd,
    JobEnded,
    Receipt,
    ReplyAccepted,
    ReplyRefused,
    SendCancel,
    SendStart,
)
from orchestrator_core.core.events import (
    AttemptEnded,
    AttemptStarted,
    EndConfirmed,
    EnqueueRequested,
    Event,
    HostRegistered,
    OutputProgressed,
    SnapshotsReported,
    Tick,
)
from orchestrator_core.core.machine import Core
from orchestrator_core.core.outcome import Finish, Usage
from orchestrator_core.core.snapshot import PoolSnapshot
from orchestrator_core.core.spec import JobSpec, Needs
from orchestrator_core.simulator.engine import INFINITY, Engine, StreamEvent
from orchestrator_core.simulator.fleets import PoolSpec
from orchestrator_core.simulator.results import JobLine, Run
from orchestrator_core.simulator.traces import Request

HOST, MODEL = "host", "model"
BYTES_PER_TOKEN = 4
GIB = 1 << 30
# Longer than any run: a simulation is about waiting, not about giving up.
FOREVER_MS = 10**12
_ROOMY: Mapping[str, Any] = {
    "queue_capacity": 100_000,
    "queue_timeout_ms": FOREVER_MS,
    "wall_timeout_ms": FOREVER_MS,
    "idle_timeout_ms": FOREVER_MS,
}
_CORE_FIELDS = frozenset(f.name for f in fields(CoreConfig))
_DEFAULTS = CoreConfig()


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """How the core is run. `config` overrides fields of `CoreConfig`; `hints` tells lengths.

    Raises:
        ValueError: when `config` names a field that the core does not have, or has a wrong value.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    hints: bool = False
    report_every_ms: float = 1000.0

    def __post_init__(self) -> None:
        """Refuses unknown fields."""
        unknown = sorted(set(self.config) - _CORE_FIELDS)
        if unknown:
            near = get_close_matches(unknown[0].rpartition(".")[2], sorted(_CORE_FIELDS), 1)
            hint = (
                f"did you mean {near[0]}?" if near else "write it without its table, as batch_every"
            )
            raise ValueError(f"the core has no setting {unknown[0]!r}; {hint}")
        for name, value in self.config.items():
            allowed = _refusal(getattr(_DEFAULTS, name), value)
            if allowed:
                raise ValueError(f"the core's setting {name} must be {allowed}, is {value!r}")
        if not 0 < self.report_every_ms < INFINITY:
            raise ValueError(f"reports must be more than 0 ms apart, not {self.report_every_ms}")


def _refusal(default: object, value: object) -> str:
    """What a setting must be, judged by its default; empty when the value is of that kind."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        number = isinstance(value, type(default) | int) and not isinstance(value, bool)
        whole = "a whole number" if isinstance(default, int) else "a number"
        return "" if number else whole
    if isinstance(default, Enum):
        names = [str(member.value) for member in type(default)]
        return "" if value in names or isinstance(value, type(default)) else " or ".join(names)
    if default is not None and not isinstance(value, type(default)):
        return "left alone here"
    return ""


def _as_core_has_it(name: str, value: Any) -> Any:
    """A choice by its name becomes the choice; anything else stays as it is."""
    default = getattr(_DEFAULTS, name)
    return type(default)(value) if isinstance(default, Enum) else value


def has_setting(name: str) -> bool:
    """True when the core has a setting of this name."""
    return name in _CORE_FIELDS


class CoreRun:
    """Plays one trace through a core of its own."""

    def __init__(
        self,
        fleet: Sequence[PoolSpec],
        requests: Sequence[Request],
        deadlines_ms: Sequence[int] | None,
        options: CoreOptions,
    ) -> None:
        self._fleet = fleet
        self._requests = requests
        self._hints = options.hints
        self._report_every_ms = options.report_every_ms
        said = {name: _as_core_has_it(name, value) for name, value in options.config.items()}
        self._core = Core(CoreConfig(**{**_ROOMY, **said}))
        self._engine = Engine(fleet)
        self._index = {spec.id: index for index, spec in enumerate(fleet)}
        self._lines = [JobLine(r.arrival_ms) for r in requests]
        for line, deadline_ms in zip(self._lines, deadlines_ms or (), strict=False):
            line.deadline_ms = deadline_ms
        self._needs = Needs(model_id=MODEL)
        self._attempts: dict[int, int] = {}
        self._outstanding = 0
        self._version = 0
        self._frames = 0
        self._reported_ms = -INFINITY

    def run(self, policy: str) -> Run:
        """Returns what became of every job."""
        self._step(HostRegistered(HOST, 1, self._snapshots()), 0.0)
        engine, core, requests = self._engine, self._core, self._requests
        arrived, total, now_ms = 0, len(requests), 0.0
        while arrived < total or self._outstanding:
            arrival_ms = requests[arrived].arrival_ms if arrived < total else INFINITY
            report_ms = self._reported_ms + self._report_every_ms if self._outstanding else INFINITY
            deadline_ms = core.next_deadline_ms()
            tick_ms = INFINITY if deadline_ms is None else max(float(deadline_ms), now_ms)
            engine_ms = engine.next_ms()
            due_ms = min(arrival_ms, report_ms, tick_ms, engine_ms)
            if due_ms == INFINITY:
                raise RuntimeError(f"{self._outstanding} jobs wait and nothing will happen")
            now_ms = due_ms
            if due_ms == engine_ms:
                self._engine_event(now_ms)
            elif due_ms == tick_ms:
                self._step(Tick(), now_ms)
            elif due_ms == report_ms:
                self._report(now_ms)
            else:
                self._arrive(arrived, now_ms)
                arrived += 1
        busy_ms = tuple(pool.busy_ms for pool in engine.pools)
        return Run(policy, self._lines, busy_ms, now_ms)

    def _arrive(self, job: int, now_ms: float) -> None:
        if not self._outstanding and now_ms - self._reported_ms >= self._report_every_ms:
            # Nobody reported while there was nothing to do: the fleet would look stale.
            self._report(now_ms)
        request = self._requests[job]
        spec = JobSpec(
            job_id=str(job),
            needs=self._needs,
            prompt_bytes=BYTES_PER_TOKEN * request.prompt_tokens,
            expected_tokens=request.output_tokens if self._hints else None,
            deadline_ms=self._lines[job].deadline_ms,
        )
        self._outstanding += 1
        self._step(EnqueueRequested(spec, job), now_ms)

    def _engine_event(self, now_ms: float) -> None:
        happened = self._engine.pop()
        if happened is None:
            return
        what, _, job = happened
        line, job_id, attempt = self._lines[job], str(job), self._attempts[job]
        if what is StreamEvent.FIRST_TOKEN:
            line.first_ms = now_ms
            self._step(OutputProgressed(job_id, attempt, 1), now_ms)
            return
        line.end_ms = now_ms
        request = self._requests[job]
        usage = Usage(tokens_in=request.prompt_tokens, tokens_out=request.output_tokens)
        self._frames += 1
        ended = AttemptEnded(job_id, attempt, self._frames, finish=Finish.EOS, usage=usage)
        self._step(ended, now_ms)

    def _step(self, event: Event, now_ms: float) -> None:
        """Lets the core take one event and carries out what it says, oldest first."""
        whole_ms = int(now_ms)
        pending: list[Event] = [event]
        for present in pending:
            for effect in self._core.step(present, whole_ms):
                match effect:
                    case SendStart():
                        pending.append(self._start(effect, now_ms))
                    case ReplyAccepted():
                        self._note_receipt(effect.receipt)
                    case JobEnded():
                        self._outstanding -= 1
                        self._forget_late(int(effect.job_id))
                    case SendCancel():
                        pending += self._stop(effect, now_ms)
                    case ConfirmEnd():
                        pending.append(EndConfirmed(effect.job_id))
                    case ReplyRefused():
                        self._outstanding -= 1
                    case _:
                        pass

    def _start(self, effect: SendStart, now_ms: float) -> Event:
        job, index = int(effect.spec.job_id), self._index[effect.pool_id]
        request, line = self._requests[job], self._lines[job]
        self._engine.start(index, job, (request.prompt_tokens, request.output_tokens), now_ms)
        self._attempts[job] = effect.attempt
        line.pool, line.start_ms = index, now_ms
        return AttemptStarted(effect.spec.job_id, effect.attempt)

    def _stop(self, effect: SendCancel, now_ms: float) -> list[Event]:
        job = int(effect.job_id)
        if not self._engine.running(job):
            return []
        self._engine.stop(job, now_ms)
        self._frames += 1
        return [AttemptEnded(effect.job_id, effect.attempt, self._frames, finish=Finish.CANCELLED)]

    def _note_receipt(self, receipt: Receipt) -> None:
        line = self._lines[int(receipt.job_id)]
        line.predicted_start_ms = receipt.predicted_start_ms
        line.predicted_end_ms = receipt.predicted_end_ms
        line.on_time_probability = receipt.on_time_probability

    def _forget_late(self, job: int) -> None:
        """Keeps no attempt number of a job that is over and holds no slot."""
        if not self._engine.running(job):
            self._attempts.pop(job, None)

    def _report(self, now_ms: float) -> None:
        self._reported_ms = now_ms
        self._step(SnapshotsReported(HOST, self._snapshots(), int(now_ms)), now_ms)

    def _snapshots(self) -> tuple[PoolSnapshot, ...]:
        self._version += 1
        attempts = self._attempts
        return tuple(
            PoolSnapshot(
                pool_id=pool.spec.id,
                replica_id=pool.spec.id,
                host_id=HOST,
                version=self._version,
                model_id=MODEL,
                engine="sim",
                slots_total=pool.spec.slots,
                slots_free=pool.free,
                ctx_max=1 << 30,
                compute_capability=pool.spec.compute_capability,
                vram_total_bytes=_bytes(pool.spec.vram_gib),
                perf_tokens_per_s=pool.spec.decode,
                first_token_ms=0,
                prefill_tokens_per_s=pool.spec.prefill,
                running=tuple((str(job), attempts[job]) for job in pool.live.values()),
                emitted_frame_seq=self._frames,
            )
            for pool in self._engine.pools
        )


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)
