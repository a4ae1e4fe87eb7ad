"""The configuration in force, and how it is changed without a restart. HME-003.

A reload reads and checks the whole file first. Whatever is wrong with it, nothing has changed then.
What is right takes effect between two events of the loop: nobody sees half of it.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator_core.config.changes import Change, changes, merged, settings
from orchestrator_core.config.loading import ConfigSource
from orchestrator_core.config.problems import ConfigError
from orchestrator_core.config.schema import Config

Commit = Callable[[], None]


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What became of a reload: `problems`, and nothing changed; or what changed, and what waits.

    `unchanged` counts the keys whose value is that of the file already.
    """

    file: str
    applied: tuple[Change, ...] = ()
    waiting: tuple[Change, ...] = ()
    unchanged: int = 0
    problems: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """One word for metrics: refused, applied or unchanged."""
        return "refused" if self.problems else "applied" if self.applied else "unchanged"


class LiveConfig:
    """The configuration of a running server. Reloads follow one another.

    `prepare` makes everything ready to go from one configuration to another, and returns what does
    it; it raises `ConfigError` for what cannot be. The latter must not fail. `tell` gets every
    report.
    """

    def __init__(self, config: Config, source: ConfigSource | None) -> None:
        self.running = config
        self._source = source
        self._one_at_a_time = asyncio.Lock()
        self.prepare: Callable[[Config, Config], Commit] = lambda _, __: lambda: None
        self.tell: Callable[[ReloadReport], None] = lambda _: None
        self._changed = asyncio.Event()

    @property
    def file(self) -> str:
        """The configuration file; empty while there is none."""
        return str(self._source.path or "") if self._source is not None else ""

    async def pause(self, span_ms: Callable[[Config], int]) -> None:
        """Sleeps for a span that is a setting; a change of it counts from where the sleep began."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while (left_s := began_s + span_ms(self.running) / 1000 - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()

    async def reload(self, *, dry_run: bool = False) -> ReloadReport:
        """Reads the file and puts in force what needs no restart; a dry run says what that is."""
        async with self._one_at_a_time:
            try:
                wanted = await asyncio.to_thread(self._read)
                report = self._put_in_force(wanted, dry_run=dry_run)
            except ConfigError as error:
                report = ReloadReport(self.file, problems=error.problems)
            if not dry_run:
                self.tell(report)
            return report

    def _read(self) -> Config:
        if self._source is None:
            raise ConfigError(["there is no file to read: start it with --config FILE"])
        return self._source.read()

    def _put_in_force(self, wanted: Config, *, dry_run: bool) -> ReloadReport:
        found = changes(self.running, wanted)
        applied = tuple(change for change in found if change.live)
        after = merged(self.running, wanted)
        commit = self.prepare(self.running, after)
        if applied and not dry_run:
            commit()
            self.running = after
            self._changed.set()
            self._changed = asyncio.Event()
        return ReloadReport(
            self.file,
            applied,
            tuple(change for change in found if not change.live),
            len(settings(wanted)) - sum(bool(change.after) for change in found),
        )
