"""The configuration file of a run. It says no more than how many jobs may wait."""

from orchestrator_core.config.loading import ConfigSource
from orchestrator_core.config.problems import ConfigError
from orchestrator_core.config.schema import Config
from orchestrator_core.core.config import CoreConfig


class SettingsFile(ConfigSource):
    """What is read at each start and reload. Every text has a mark of its own.

    A start takes the last good text: with another one orchestratord would not start.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(None, {})
        self.good = config
        self._edits = 0
        self._wrong = False

    @property
    def mark(self) -> str:
        """The mark of the good text."""
        return mark_of(self.good.jobs.disconnect_grace_ms)

    def read(self) -> Config:
        """See `ConfigSource.read`."""
        if self._wrong:
            raise ConfigError(["queue.capacity: is not a number (injected)"])
        return self.good

    def edit(self, *, capacity: int, wrong: bool) -> str:
        """Writes another text; returns its mark."""
        self._edits += 1
        self._wrong = wrong
        if wrong:
            return f"wrong {self._edits}"
        jobs = self.good.jobs
        grace_ms = jobs.disconnect_grace_ms + 1
        self.good = self.good.model_copy(
            update={
                "jobs": jobs.model_copy(update={"disconnect_grace_ms": grace_ms}),
                "queue": self.good.queue.model_copy(update={"capacity": capacity}),
            }
        )
        return self.mark

    def mend(self) -> str:
        """Writes the last good text again; returns its mark."""
        self._wrong = False
        return self.mark


def mark_of(disconnect_grace_ms: int) -> str:
    """The mark of settings: a time that differs by milliseconds, which nothing depends on."""
    return f"{disconnect_grace_ms} ms"


def mark_in_force(config: CoreConfig) -> str:
    """The mark of what a core decides by."""
    return mark_of(config.disconnect_grace_ms)
