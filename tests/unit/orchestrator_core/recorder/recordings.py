"""Recorded random worlds for tests."""

import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestrator_core.core.config import CoreConfig
from orchestrator_core.core.events import EnqueueRequested, Event, Recovered
from orchestrator_core.core.machine import Core
from orchestrator_core.recorder.recorder import RecordedCore, RecorderSettings, recordings
from orchestrator_core.recorder.segment import Frame, SegmentWriter, read_frames, read_header
from tests.unit.orchestrator_core.core.world import World
from tests.unit.orchestrator_core.core.world_settings import config_of

PROMPT = b"a prompt that nobody may find on disk"
LABELS = (("a label", "that nobody may find either"),)
PATIENCE_S = 30.0


class Recorded(World):
    """A random world whose core is recorded in `directory`; every job has a prompt."""

    def __init__(
        self, seed: int, directory: Path, *, segment_bytes: int = 1 << 20, segments_max: int = 1_000
    ) -> None:
        super().__init__(seed, config_of(seed), memory=seed % 2 == 0)
        settings = RecorderSettings(directory, seed, segment_bytes, segments_max)
        self.recorded = RecordedCore(self.config, settings)
        self.core: Core = self.recorded

    def step(self, event: Event) -> list:  # type: ignore[type-arg]
        """Lets the recorded core take one event."""
        if isinstance(event, EnqueueRequested):
            event = replace(event, spec=replace(event.spec, payload=PROMPT, labels=LABELS))
        return super().step(event)

    def crash(self) -> None:
        """Not here: a new process begins a new recording."""

    def end(self) -> None:
        """Ends the recording."""
        self.recorded.end()
        self.recorded.recorder.join()


def record(
    seed: int,
    directory: Path,
    steps: int = 250,
    other_config: Callable[[random.Random], CoreConfig] | None = None,
    **bounds: int,
) -> Recorded:
    """A world, recorded from its beginning to an orderly end; it recovers a journal first."""
    world = Recorded(seed, directory, **bounds)
    world.other_config = other_config
    before = World(seed + 1, config_of(seed), memory=seed % 2 == 0)
    before.catalog = world.catalog = seed % 5 in (2, 3)
    before.run(60)
    world.step(with_prompts(before.journal.content()))
    for _ in range(25):
        world.run(steps // 25)
        assert world.recorded.recorder.flush(PATIENCE_S)
    world.end()
    return world


def with_prompts(content: Recovered) -> Recovered:
    """A journal's content whose jobs have prompts."""
    return replace(
        content,
        accepts=tuple(replace(a, spec=replace(a.spec, payload=PROMPT)) for a in content.accepts),
    )


def inflated(path: Path) -> bytes:
    """Everything that a segment holds, in clear."""
    raw = path.read_bytes()
    head = raw.index(b"\n", raw.index(b"\n") + 1) + 1
    return raw[:head] + zlib.decompressobj().decompress(raw[head:])


def rewritten(path: Path, into: Path, change: Callable[[int, Frame], Frame | None]) -> Path:
    """A copy of a segment; `change` gets each frame with its number, None leaves it out."""
    header = read_header(path)
    assert header is not None
    into.mkdir()
    writer = SegmentWriter(into, header)
    for number, frame in enumerate(read_frames(path)):
        changed = change(number, frame)
        if changed is not None:
            writer.add(changed.kind, changed.body)
    writer.close()
    return writer.path


def only_segment(directory: Path) -> Path:
    """The one file of a short recording."""
    (path,) = recordings(directory)
    return path
