"""Settings as text: a whole file, one value, and the table of all keys for the documentation."""

import datetime as dt
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import AwareDatetime
from pydantic.fields import FieldInfo

from orchestrator_core.config.schema import ENVIRONMENT_KEYS, Config
from orchestrator_core.config.table import LIVE, Table

# Source: toml.io v1.0.0, Keys.
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the schema, `NAME` in place of names that are free; `live`: without a restart."""

    path: str
    info: FieldInfo
    live: bool


def to_toml(config: Config) -> str:
    """The effective configuration as a file that `load_config` reads back to the same values."""
    return "\n".join([*_table_lines(config.model_dump(exclude_none=True), ""), ""])


def reference() -> str:
    """The table of all keys for docs/configuration.md, as Markdown."""
    lines = ["| key | default | allowed | reload | meaning |", "|---|---|---|---|---|"]
    for key in keys():
        info, reload = key.info, "yes" if key.live else "restart"
        row = (f"`{key.path}`", _default(info), _allowed(info), reload, info.description)
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines) + "\n"


def keys(table: type[Table] = Config, prefix: str = "", *, live: bool = False) -> Iterator[Key]:
    """Every key that a file may have, in the order of the schema."""
    for name, info in table.model_fields.items():
        inner, path, so = info.annotation, prefix + name, live or LIVE in info.metadata
        if typing.get_origin(inner) is dict:
            inner, path = typing.get_args(inner)[1], f"{path}.NAME"
        if isinstance(inner, type) and issubclass(inner, Table):
            yield from keys(inner, f"{path}.", live=so)
        elif name not in ENVIRONMENT_KEYS:
            yield Key(path, info, so)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    return "unset" if value is None else f"`{value_text(value)}`"


def _allowed(info: FieldInfo) -> str:
    if typing.get_origin(info.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(info.annotation))
    if info.annotation is bool:
        return "`true`, `false`"
    low = next((item.ge for item in info.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in info.metadata if hasattr(item, "le")), None)
    if typing.get_origin(info.annotation) is tuple:
        return "list of text"
    if AwareDatetime in typing.get_args(info.annotation):
        return "date and time"
    return "text" if low is None else f"{low} to {high}"


def _table_lines(table: Mapping[str, object], path: str) -> list[str]:
    """The keys of a table, then its inner tables, each under its whole name."""
    lines = [f"{key} = {value_text(v)}" for key, v in table.items() if not isinstance(v, dict)]
    for key, inner in table.items():
        if isinstance(inner, dict):
            name = path + key_text(key)
            lines += ["", f"[{name}]", *_table_lines(inner, f"{name}.")]
    return lines


def key_text(key: str) -> str:
    """A key, quoted where it has to be."""
    return key if _BARE_KEY.fullmatch(key) else value_text(key)


def value_text(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return f"[{', '.join(map(value_text, value))}]"
    return str(value)
