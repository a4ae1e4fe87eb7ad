"""The configuration in force, and how it is changed without a restart. HME-003.

A reload reads and checks the whole file first. Whatever is wrong with it, nothing has changed then.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pool_managerd.config.changes import changes, merged
from pool_managerd.config.problems import ConfigError
from pool_managerd.config.schema import Config
from pool_managerd.engines.file_reads import FileReads
from pool_managerd.telemetry import SPAN_CONFIG_RELOAD, Telemetry, log
from pool_managerd.telemetry.names import CHANGED_KEYS, WAITING_KEYS

# Of a change: lines under one key, and keys in the sentence.
CHANGES_MAX = 100
KEYS_SHOWN = 8
WHY_CHARS = 256
READ_TIMEOUT_MS = 10_000
"""Longest wait for the disk of the configuration: pools are started again only after it."""

_FILE = Path("the configuration")
"""Stands for the file, which `read` knows: while one reader hangs no other one is sent."""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What became of a reload: `problems`, and nothing changed; or what changed, and what waits.

    `changed` and `waiting` are lines: a key, its value before and after.
    """

    changed: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """One word for metrics: refused, applied or unchanged."""
        return "refused" if self.problems else "applied" if self.changed else "unchanged"


class LiveConfig:
    """The configuration of a running host. `read` reads it again, `apply` puts it in force.

    `apply` gets the configuration before and after, and must not fail. Reloads follow one another.
    """

    def __init__(
        self,
        config: Config,
        read: Callable[[], Config],
        apply: Callable[[Config, Config], None],
        read_timeout_ms: int = READ_TIMEOUT_MS,
    ) -> None:
        self.running = config
        self._read_timeout_ms = read_timeout_ms
        self._read = read
        self._apply = apply
        self._reads = FileReads()
        self._one_at_a_time = asyncio.Lock()

    async def reload(self, telemetry: Telemetry) -> ReloadReport:
        """Reads the file and puts in force what needs no restart; the log tells of it."""
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(self._read_timeout_ms / 1000):
                    wanted = await self._reads.run(_FILE, self._read)
                report = self._put_in_force(wanted)
            except ConfigError as error:
                report = ReloadReport(problems=error.problems)
            except TimeoutError:
                why = f"it was not read within {self._read_timeout_ms} ms: look at its disk"
                report = ReloadReport(problems=(why,))
            except Exception as error:  # noqa: BLE001 - it must not cost the host its engines
                log.error("config_reload_broke", exc_info=error, human="A bug: please report it.")
                why = f"it could not be read again: {type(error).__name__}"
                report = ReloadReport(problems=(why,))
        told = {
            "outcome": report.outcome,
            CHANGED_KEYS: list(report.changed)[:KEYS_SHOWN],
            WAITING_KEYS: list(report.waiting)[:KEYS_SHOWN],
            "why": "; ".join(report.problems)[:WHY_CHARS],
        }
        telemetry.event(SPAN_CONFIG_RELOAD, told)
        telemetry.metrics.config_reloaded(report.outcome)
        tell = log.warning if report.problems or report.waiting else log.info
        tell(
            "config_reload",
            outcome=report.outcome,
            changed=list(report.changed.values())[:CHANGES_MAX],
            needs_restart=list(report.waiting.values())[:CHANGES_MAX],
            problems=list(report.problems),
            human=_sentence(report),
        )
        return report

    def _put_in_force(self, wanted: Config) -> ReloadReport:
        found = changes(self.running, wanted)
        before, after = self.running, merged(self.running, wanted)
        if after != before:
            self._apply(before, after)
            self.running = after
        return ReloadReport(
            {each.key: each.told() for each in found if each.live},
            {each.key: each.told() for each in found if not each.live},
        )


def _sentence(report: ReloadReport) -> str:
    if report.problems:
        return f"The configuration stays as it was: {'; '.join(report.problems)}"
    count, waiting = len(report.changed), list(report.waiting)
    done = f"{count} setting{'s' * (count != 1)} changed" if count else "nothing changed"
    shown = ", ".join(waiting[:KEYS_SHOWN]) + (", ..." if len(waiting) > KEYS_SHOWN else "")
    rest = f"; restart pool-managerd for {shown}" if waiting else ""
    return f"The configuration was read again: {done}{rest}."
