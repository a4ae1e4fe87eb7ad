"""Hypothesis strategies for the core's records: every field, every enum member, every None."""

import dataclasses
import enum
import types
import typing
from typing import Any

from hypothesis import strategies as st


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type of the core, with every field of every dataclass drawn."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        names = [field.name for field in dataclasses.fields(hint)]
        return st.builds(hint, **{name: strategy_of(hints[name]) for name in names})
    return generic_strategy_of(typing.get_origin(hint), typing.get_args(hint))


def generic_strategy_of(origin: Any, arguments: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """Values of unions, tuples and dicts."""
    if origin in {typing.Union, types.UnionType}:
        return st.one_of([strategy_of(argument) for argument in arguments])
    if origin is tuple and arguments[-1] is ...:
        return st.lists(strategy_of(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(strategy_of, arguments))
    assert origin is dict, origin
    return st.dictionaries(strategy_of(arguments[0]), strategy_of(arguments[1]), max_size=2)


_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers(0, 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=8),
    bytes: st.binary(max_size=8),
}
