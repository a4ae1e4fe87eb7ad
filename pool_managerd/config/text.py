"""Text made from the configuration's schema.

The effective configuration, and the table in the docs.
"""

import json
import types
import typing
from collections.abc import Iterator

from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pool_managerd.config.problems import tables_in
from pool_managerd.config.schema import Config
from pool_managerd.config.table import LIVE


def to_toml(config: Config) -> str:
    """The effective configuration as TOML, without secrets."""
    return "\n".join(_toml_lines(config.model_dump(mode="json", exclude_none=True), "")) + "\n"


def _toml_lines(table: dict[str, typing.Any], path: str) -> Iterator[str]:
    nested = {k: v for k, v in table.items() if isinstance(v, dict) or _is_table_list(v)}
    for key, value in table.items():
        if key not in nested:
            # JSON's strings, numbers, booleans and flat lists are TOML too.
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in nested.items():
        inner = f"{path}.{key}" if path else key
        for item in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{inner}]]" if isinstance(value, list) else f"[{inner}]"
            yield from _toml_lines(item, inner)


def _is_table_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def configuration_table() -> str:
    """Every key as a Markdown table, in the order of the schema."""
    rows = ["| key | type | default | bounds | reload | meaning |", "|---|---|---|---|---|---|"]
    rows.extend(_rows(Config, "", None, live=False))
    return "\n".join(rows) + "\n"


def _rows(table: type[BaseModel], path: str, defaults: object, *, live: bool) -> Iterator[str]:
    for name, field in table.model_fields.items():
        if field.exclude:
            continue
        tables = tables_in(field.annotation)
        many = typing.get_origin(field.annotation) is tuple
        key = f"{path}.{name}" if path else name
        default, so = getattr(defaults, name, field.default), live or LIVE in field.metadata
        if not tables:
            yield _row(key, field, default, live=so)
        elif len(tables) == 1:
            yield from _rows(
                tables[0], f"{key}[]" if many else key, None if many else default, live=so
            )
        else:
            for option in tables:
                kind = typing.get_args(option.model_fields["kind"].annotation)[0]
                yield from _rows(option, f"{key}({kind})", None, live=so)


def _row(key: str, field: FieldInfo, value: object, *, live: bool) -> str:
    default = "" if value is PydanticUndefined else json.dumps(value)
    if field.is_required():
        default = "required"
    if value is None:
        default = "absent"
    meaning = (field.description or "").replace("|", "\\|")
    kind = _type_text(field.annotation).replace("|", "\\|")
    reload = "yes" if live else "restart"
    return f"| `{key}` | {kind} | {default} | {_bounds(field)} | {reload} | {meaning} |"


def _type_text(annotation: object) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f'"{choice}"' for choice in inner)
    if origin is typing.Annotated:
        return _type_text(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part) for part in inner if part is not type(None))
    if origin is tuple:
        return f"list of {_type_text(inner[0])}"
    if origin is dict:
        return f"table of {_type_text(inner[1])}"
    names: dict[object, str] = {
        str: "string",
        int: "integer",
        float: "number",
        bool: "boolean",
        AwareDatetime: "date and time",
    }
    return names.get(annotation, str(annotation))


_BOUNDS = {
    "ge": "≥",
    "gt": ">",
    "le": "≤",
    "lt": "<",
    "min_length": "length ≥",
    "max_length": "length ≤",
}


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(item, name, None) is not None
    ]
    return ", ".join(found)
