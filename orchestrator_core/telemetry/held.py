"""Spans of jobs that were sampled out, until it is known how the job ends. Design §8.

A sampler decides when a job comes; whether somebody will ask for its trace is known when it ends.
So the spans of one that is sampled out are held, and exported after all where it was rejected,
failed, ran out of time, gave way, or lost an attempt. Bounded: beyond it the oldest are let go.
"""

from collections.abc import Callable
from typing import Final

from orchestrator_core.telemetry.exporting import EncodedSpan

# Jobs of which spans are held; more do not live at a time in most configurations.
FAMILIES_MAX: Final = 16_384
# Spans of one job; a job that is tried again and again has more.
SPANS_MAX: Final = 32
# How many decisions are remembered for spans that end after their job, as that of its call may.
DECIDED_MAX: Final = 4_096


class HeldSpans:
    """Holds finished spans by family: the id of the span that enqueued the job."""

    def __init__(self, emit: Callable[[EncodedSpan], None]) -> None:
        self._emit = emit
        self._held: dict[int, list[EncodedSpan]] = {}
        self._decided: dict[int, bool] = {}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def add(self, family: int, span: EncodedSpan) -> None:
        """Holds a span, or does with it as was decided for its family."""
        keep = self._decided.get(family)
        if keep is not None:
            if keep:
                self._emit(span)
            return
        spans = self._held.setdefault(family, [])
        if len(spans) < SPANS_MAX:
            spans.append(span)
        if len(self._held) > FAMILIES_MAX:
            del self._held[next(iter(self._held))]

    def decide(self, family: int, *, keep: bool) -> None:
        """Exports the spans of a family, or lets them go; the first decision stands."""
        if family in self._decided:
            return
        self._decided[family] = keep
        if len(self._decided) > DECIDED_MAX:
            del self._decided[next(iter(self._decided))]
        for span in self._held.pop(family, ()):
            if keep:
                self._emit(span)
