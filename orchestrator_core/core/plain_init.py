"""Frozen dataclasses that are as cheap to make as mutable ones.

A job's way through the core makes some thirty small records. `dataclass(frozen=True)` sets each
field through `object.__setattr__`, which made that a fifth of the core's time (`make bench-core`).
Where every job goes by they are made with positional arguments: CPython 3.11 packs the keyword
arguments of a class into a dict and unpacks them again, which more than doubles the cost.
"""

from dataclasses import field, fields, make_dataclass
from typing import TypeVar

_T = TypeVar("_T")


def plain_init(cls: type[_T]) -> type[_T]:
    """Gives a frozen, slotted dataclass the constructor and the attributes of one that is not.

    It stays frozen for mypy, which sees the decorator below, and hashable; at run time nothing
    stops an assignment. `__post_init__` is not called, so a class that has one is refused.

    Raises:
        TypeError: for a class with `__post_init__`.
    """
    if hasattr(cls, "__post_init__"):
        raise TypeError(f"{cls.__name__} checks itself when made; leave it frozen")
    like = [
        (f.name, f.type, field(default=f.default, default_factory=f.default_factory))
        if f.default_factory is not f.default
        else (f.name, f.type)
        for f in fields(cls)  # type: ignore[arg-type]  # a dataclass, as the docstring asks
    ]
    twin = make_dataclass(f"_{cls.__name__}", like)
    cls.__init__ = twin.__init__  # type: ignore[method-assign, misc]  # equal parameters
    del cls.__setattr__, cls.__delattr__
    return cls
