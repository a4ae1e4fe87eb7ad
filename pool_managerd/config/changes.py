"""What a changed configuration may change while the host runs, and what waits for a restart.

HME-003.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic_core import to_jsonable_python

from pool_managerd.config.problems import ConfigError
from pool_managerd.config.schema import Config, PoolTable
from pool_managerd.config.security import link_problems, listen_problems
from pool_managerd.config.table import HIDDEN, LIVE, Table

HIDDEN_CHARS = 6
_DIGEST = re.compile(r"[0-9a-f]{64}")
"""Its first characters say which it is, and not what it is of."""

_T = TypeVar("_T", bound=Table)


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


def changes(running: Config, wanted: Config) -> list[Change]:
    """Which keys differ, in the order of the schema; pools are told apart by their ids."""
    bound = _bound(running, wanted)
    before = {each.key: each for each in _flat(running, bound)}
    after = {each.key: each for each in _flat(wanted, bound)}
    found = []
    for key, either in (before | after).items():
        old, new = before.get(key), after.get(key)
        if old is None or new is None or old.value != new.value:
            shown = (old.text() if old else "", new.text() if new else "")
            found.append(Change(key, *shown, either.live))
    return found


def merged(running: Config, wanted: Config) -> Config:
    """What is in force after a reload: the wanted values of all keys that need no restart.

    Raises:
        ConfigError: when those do not go with the present values of the others.
    """
    found = _merged(running, wanted, "", _bound(running, wanted))
    exposed = listen_problems(found.listen, found.metrics_listen, found.auth, found.tls)
    problems = [*exposed, *link_problems(found.orchestrator, found.link)]
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
        if LIVE in info.metadata and path + name not in bound:
            update[name] = theirs
        elif isinstance(mine, Table) and type(mine) is type(theirs):
            update[name] = _merged(mine, theirs, f"{path}{name}.", bound)
    return running.model_copy(update=update)


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    value: object
    live: bool
    hidden: bool

    def text(self) -> str:
        if self.hidden:
            shown = str(self.value)[:HIDDEN_CHARS] if _DIGEST.fullmatch(str(self.value)) else ""
            return f'"{shown}..."'
        return json.dumps(to_jsonable_python(self.value), ensure_ascii=False)


def _flat(
    table: Table, bound: frozenset[str], path: str = "", *, live: bool = False
) -> Iterator[_Entry]:
    """Every key that is set, with its value; secrets of the environment are left out."""
    for name, info in type(table).model_fields.items():
        key, value = path + name, getattr(table, name)
        so = (live or LIVE in info.metadata) and key not in bound
        if info.exclude or value is None:
            continue
        if isinstance(value, Table):
            yield from _flat(value, bound, f"{key}.", live=so)
        elif isinstance(value, dict):
            for inner, entry in sorted(value.items()):
                yield from _flat_entry(f"{key}.{inner}", entry, bound, live=so)
        elif name == "pools":
            for pool in sorted(value, key=_pool_id):
                yield from _flat(pool, bound, f"{key}.{pool.pool_id}.", live=so)
        else:
            yield _Entry(key, value, so, HIDDEN in info.metadata)


def _flat_entry(key: str, entry: object, bound: frozenset[str], *, live: bool) -> Iterator[_Entry]:
    """One of a table's entries: a table itself, or a text, which may be a secret."""
    if isinstance(entry, Table):
        yield from _flat(entry, bound, f"{key}.", live=live)
    else:
        yield _Entry(key, entry, live, hidden=True)


def _pool_id(pool: PoolTable) -> str:
    return pool.pool_id
