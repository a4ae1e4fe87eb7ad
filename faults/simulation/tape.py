"""A core that can show that what it decided follows from what it was asked. Principle 3."""

from collections.abc import Callable

from faults.simulation.heard import Heard
from orchestrator_core.core.checkpoint import Frozen
from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.decided import Line, decided
from orchestrator_core.core.effects import Effect
from orchestrator_core.core.events import (
    ConfigChanged,
    Event,
    ModelDeleted,
    ModelPut,
    ModelStateSet,
    PoolDrainRequested,
    Recovered,
)
from orchestrator_core.core.machine import Core

OnGiveUp = Callable[[str, int], None]
_Begun = tuple[Frozen, CoreConfig]
_Step = tuple[Event, int, list[Line]]
_OF_OPERATORS = (ConfigChanged, ModelDeleted, ModelPut, ModelStateSet, PoolDrainRequested)


class TapedCore(Core):
    """Takes a checkpoint once an operator has acted, and keeps every step from there on.

    `on_give_up` is called for each attempt that is over while its host is away.
    """

    def __init__(self, config: CoreConfig) -> None:
        super().__init__(config)
        self._begun: _Begun | None = None
        self._steps: list[_Step] = []
        self.heard = Heard()
        self.on_give_up: OnGiveUp = lambda _job_id, _attempt: None

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """See `Core.step`."""
        self.heard.step(self, event)
        attempts = tuple(self._state.attempts.values())
        effects = super().step(event, now_ms)
        self.heard.said(self, effects)
        for attempt in attempts:
            if attempt.key not in self._state.attempts and self._away(attempt.host_id):
                self.on_give_up(*attempt.key)
        if self._begun is not None:
            self._steps.append((event, now_ms, decided(effects)))
        elif _by_operator(event):
            self._begun = self.freeze(), self.config
        return effects

    def _away(self, host_id: str) -> bool:
        host = self._state.hosts.get(host_id)
        return host is None or host.link_id is None

    def replayed(self) -> str:
        """What another core decides otherwise from the checkpoint on; empty when nothing."""
        if self._begun is None:
            return ""
        again = Core.thawed(*self._begun)
        for number, (event, now_ms, lines) in enumerate(self._steps):
            now = decided(again.step(event, now_ms))
            if now != lines:
                return f"step {number}, {event!r}, decides {now} again, was {lines}"
        return "" if again.freeze() == self.freeze() else "the state is another at the end"


def _by_operator(event: Event) -> bool:
    """True for an act of an operator, and for a start that finds some."""
    if isinstance(event, Recovered):
        return bool(event.models or event.drains)
    return isinstance(event, _OF_OPERATORS)
