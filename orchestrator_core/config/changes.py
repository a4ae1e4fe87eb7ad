"""What a changed configuration may change while the server runs, and what waits for a restart.

HME-003.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from orchestrator_core.config.problems import ConfigError
from orchestrator_core.config.schema import ENVIRONMENT_KEYS, Config, cross_problems
from orchestrator_core.config.table import HIDDEN, LIVE, Table
from orchestrator_core.config.text import key_text, value_text

HIDDEN_CHARS = 6

_T = TypeVar("_T", bound=Table)


@dataclass(frozen=True, slots=True)
class Setting:
    """One key with a value; `live` when it changes without a restart. Secrets are cut short."""

    key: str
    value: str
    live: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value in the file is not the one in force; empty where there is none.

    `live`: it changes without a restart.
    """

    key: str
    before: str
    after: str
    live: bool

    def told(self) -> str:
        """In one line."""
        return f"{self.key}: {self.before or 'unset'} -> {self.after or 'unset'}"


def settings(config: Config) -> list[Setting]:
    """Everything that is set, in the order of the schema."""
    return [Setting(each.key, each.text(), each.live) for each in _flat(config, frozenset())]


def changes(running: Config, wanted: Config) -> list[Change]:
    """Which keys differ, in the order of the schema."""
    bound = _bound(running, wanted)
    before = {each.key: each for each in _flat(running, bound)}
    after = {each.key: each for each in _flat(wanted, bound)}
    found = []
    for key, either in (before | after).items():
        old, new = before.get(key), after.get(key)
        if old is None or new is None or old.value != new.value:
            found.append(
                Change(key, old.text() if old else "", new.text() if new else "", either.live)
            )
    return found


def merged(running: Config, wanted: Config) -> Config:
    """What is in force after a reload: the wanted values of all keys that need no restart.

    Raises:
        ConfigError: when those do not go with the present values of the others.
    """
    found = _merged(running, wanted, "", _bound(running, wanted))
    problems = list(cross_problems(found))
    if problems:
        hint = "as some keys of the file need a restart, they count with their present values"
        raise ConfigError([*problems, hint])
    return found


def _bound(running: Config, wanted: Config) -> frozenset[str]:
    """Keys that are live at other times. Whether anybody is asked for a token stays as it is."""
    switched = bool(running.auth.tokens) != bool(wanted.auth.tokens)
    return frozenset({"auth.tokens"} if switched else ())


def _merged(running: _T, wanted: _T, path: str, bound: frozenset[str]) -> _T:
    update: dict[str, object] = {}
    for name, info in type(running).model_fields.items():
        mine, theirs = getattr(running, name), getattr(wanted, name)
        if isinstance(mine, Table):
            update[name] = _merged(mine, theirs, f"{path}{name}.", bound)
        elif LIVE in info.metadata and path + name not in bound:
            update[name] = theirs
    return running.model_copy(update=update)


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    value: object
    live: bool
    hidden: bool

    def text(self) -> str:
        shown = f"{str(self.value)[:HIDDEN_CHARS]}..." if self.hidden else self.value
        return value_text(shown)


def _flat(
    table: Table, bound: frozenset[str], path: str = "", *, live: bool = False
) -> Iterator[_Entry]:
    """Every key that is set, with its value."""
    for name, info in type(table).model_fields.items():
        key, value = path + name, getattr(table, name)
        so = (live or LIVE in info.metadata) and key not in bound
        if name in ENVIRONMENT_KEYS or value is None:
            continue
        if isinstance(value, Table):
            yield from _flat(value, bound, f"{key}.", live=so)
        elif isinstance(value, dict):
            for inner, entry in sorted(value.items()):
                name_of = f"{key}.{key_text(inner)}"
                if isinstance(entry, Table):
                    yield from _flat(entry, bound, f"{name_of}.", live=so)
                else:
                    yield _Entry(name_of, entry, so, HIDDEN in info.metadata)
        else:
            yield _Entry(key, value, so, HIDDEN in info.metadata)
