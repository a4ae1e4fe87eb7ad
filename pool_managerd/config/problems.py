"""What is wrong with a configuration, in sentences that name the key."""

import difflib
import types
import typing

from pool_managerd.config.table import Table
from pool_managerd.errors import PoolManagerError


class ConfigError(PoolManagerError):
    """The configuration cannot be used. `problems` names every key that is wrong, and why."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def problem(item: typing.Any, root: type[Table]) -> str:
    """One sentence about one error of the validation of `root`: its key, and what is wrong."""
    location, kind = tuple(item["loc"]), str(item["type"])
    if kind == "extra_forbidden":
        table, key = _table_at(location[:-1], root), str(location[-1])
        known = sorted(name for name in table.model_fields if name not in _HIDDEN) if table else []
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        return f"{_dotted(location)}: unknown key{hint}"
    if kind == "union_tag_invalid":
        tag = str(item["ctx"]["tag"])
        near = difflib.get_close_matches(tag, sorted(_TAGS), n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        return f'{_dotted(location)}.kind: "{tag}" is none of {", ".join(sorted(_TAGS))}{hint}'
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{_dotted(location)}: {message}" if location else message


_HIDDEN = frozenset({"api_key", "hf_token", "token", "otlp_endpoint"})
_TAGS = frozenset({"embedded", "llama_server", "mock", "ollama", "openai", "triton"})


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in _TAGS:
            text += f".{part}" if text else part
    return text


def _table_at(location: tuple[int | str, ...], root: type[Table]) -> type[Table] | None:
    table: type[Table] | None = root
    candidates: tuple[type[Table], ...] = ()
    for part in location:
        if isinstance(part, int):
            continue
        if part in _TAGS and candidates:
            table = next((c for c in candidates if _tag_of(c) == part), None)
        elif table is not None and part in table.model_fields:
            candidates = tables_in(table.model_fields[part].annotation)
            table = candidates[0] if candidates else None
    return table


def _tag_of(table: type[Table]) -> str | None:
    tags = (
        typing.get_args(table.model_fields["kind"].annotation)
        if "kind" in table.model_fields
        else ()
    )
    return str(tags[0]) if tags else None


def tables_in(annotation: object) -> tuple[type[Table], ...]:
    """The configuration tables that a field's annotation mentions, in order."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return (annotation,) if issubclass(annotation, Table) else ()
    return tuple(table for inner in typing.get_args(annotation) for table in tables_in(inner))
