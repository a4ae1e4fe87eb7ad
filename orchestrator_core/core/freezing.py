"""Copies of the core's tables, derived from their type hints, so that a new field is not forgotten.

A *freezer* knows for one type hint how a column of values becomes immutable (`freeze`), and back
(`thaw`). What cannot change is shared, not copied. Every object that can is stored once, in a table
of its class, and referred to by number, so that what was one object comes back as one. Freezing
works on whole columns with C functions, because it happens on the event loop: about a microsecond
for a job. LO-207.
"""

import enum
import types
import typing
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import count, islice
from operator import attrgetter
from typing import Any, Protocol, cast

Column = Sequence[object]
Blanks = Mapping[type, Sequence[object]]


class Numbered:
    """Objects that several tables hold, numbered in the order in which they were first met."""

    __slots__ = ("_numbers", "objects")

    def __init__(self) -> None:
        self.objects: dict[int, object] = {}
        self._numbers: dict[int, int] = {}

    def numbers(self, column: Column) -> list[int | None]:
        """Number of each object; None stays None."""
        present = [value for value in column if value is not None]
        self.objects.update(zip(map(id, present), present, strict=True))
        known = len(self._numbers)
        self._numbers.update(zip(islice(self.objects, known, None), count(known), strict=False))
        return list(map(self._numbers.get, map(id, column)))


Shared = Mapping[type, Numbered]


class Freezer(Protocol):
    """One kind of value. `hint` is the type of what `freeze` makes of it."""

    @property
    def hint(self) -> object:
        """Type hint of the frozen form."""
        ...

    def freeze(self, column: Column, shared: Shared) -> Column:
        """Immutable forms of many values at once."""
        ...

    def thaw(self, value: object, blanks: Blanks) -> object:
        """The value again."""
        ...


class Leaf:
    """Cannot change: kept as it is."""

    def __init__(self, hint: object) -> None:
        self.hint = hint

    def freeze(self, column: Column, _: Shared) -> Column:
        """The values themselves."""
        return column

    def thaw(self, value: object, _: Blanks) -> object:
        """The value itself."""
        return value


class Reference:
    """An object of a class with a table, or None: its number."""

    hint: object = int | None

    def __init__(self, cls: type) -> None:
        self._cls = cls

    def freeze(self, column: Column, shared: Shared) -> Column:
        """Numbers."""
        return shared[self._cls].numbers(column)

    def thaw(self, value: object, blanks: Blanks) -> object:
        """The one object with that number."""
        return None if value is None else blanks[self._cls][cast("int", value)]


class Sequences:
    """A list, or a set in sorted order."""

    def __init__(self, make: Callable[[Iterable[object]], object], item: Freezer) -> None:
        self._make = make
        self._item = item
        self.hint = tuple_of(item.hint, ...)

    def freeze(self, column: Column, shared: Shared) -> Column:
        """Tuples."""
        values = cast("Sequence[Iterable[object]]", column)
        if self._make is set:
            values = [sorted(cast("Iterable[str]", v)) if v else () for v in values]
        if isinstance(self._item, Leaf):
            return list(map(tuple, values))
        return [tuple(self._item.freeze(list(value), shared)) for value in values]

    def thaw(self, value: object, blanks: Blanks) -> object:
        """A new list or set."""
        items = cast("Iterable[object]", value)
        return self._make(self._item.thaw(item, blanks) for item in items)


class Deques:
    """A deque, with its bound."""

    def __init__(self, item: Freezer) -> None:
        self._items = Sequences(list, item)
        self.hint = tuple_of(int | None, self._items.hint)

    def freeze(self, column: Column, shared: Shared) -> Column:
        """Pairs of bound and items."""
        bounds = [cast("deque[object]", value).maxlen for value in column]
        return list(zip(bounds, self._items.freeze(column, shared), strict=True))

    def thaw(self, value: object, blanks: Blanks) -> object:
        """A new deque."""
        bound, items = cast("tuple[int | None, object]", value)
        return deque(cast("Iterable[object]", self._items.thaw(items, blanks)), maxlen=bound)


class Mappings:
    """A dict: keys and values in its order, which decides what is met first. Keys cannot change.

    Of an OrderedDict that is `unmoved`, entries only come at the end: the plain dict below it has
    them in the same order, and is read in a sixth of the time.
    """

    def __init__(
        self, make: Callable[[Iterable[object]], object], key: Freezer, item: Freezer
    ) -> None:
        self._make = make
        self._item = item
        self.unmoved = False
        self.hint = tuple_of(tuple_of(key.hint, ...), tuple_of(item.hint, ...))

    def freeze(self, column: Column, shared: Shared) -> Column:
        """Pairs of keys and values; not one pair per entry, which would take ten times as long."""
        keys, values = (dict.keys, dict.values) if self.unmoved else (iter, _values)
        return [
            (tuple(keys(value)), tuple(self._item.freeze(list(values(value)), shared)))
            for value in cast("Sequence[dict[object, object]]", column)
        ]

    def thaw(self, value: object, blanks: Blanks) -> object:
        """A new dict."""
        keys, items = cast("tuple[Iterable[object], Iterable[object]]", value)
        thawed = (self._item.thaw(item, blanks) for item in items)
        return self._make(zip(keys, thawed, strict=True))


def _values(value: dict[object, object]) -> Iterable[object]:
    return value.values()


class Tuples:
    """A tuple of which some members can change."""

    def __init__(self, items: Sequence[Freezer]) -> None:
        self._items = items
        self.hint = tuple_of(*(item.hint for item in items))

    def freeze(self, column: Column, shared: Shared) -> Column:
        """Tuples."""
        columns = zip(*cast("Sequence[Sequence[object]]", column), strict=True)
        frozen = [
            item.freeze(list(values), shared)
            for item, values in zip(self._items, columns, strict=False)
        ]
        return list(zip(*frozen, strict=True))

    def thaw(self, value: object, blanks: Blanks) -> object:
        """A new tuple."""
        members = cast("Sequence[object]", value)
        return tuple(
            freezer.thaw(member, blanks)
            for freezer, member in zip(self._items, members, strict=True)
        )


class Optionals:
    """A table that may be missing."""

    def __init__(self, item: Freezer) -> None:
        self._item = item
        self.hint = cast("types.GenericAlias", item.hint) | None

    def freeze(self, column: Column, shared: Shared) -> Column:
        """Frozen, or None."""
        frozen = iter(self._item.freeze([v for v in column if v is not None], shared))
        return [None if value is None else next(frozen) for value in column]

    def thaw(self, value: object, blanks: Blanks) -> object:
        """The value, or None."""
        return None if value is None else self._item.thaw(value, blanks)


class Rows:
    """Objects with fields: a tuple of what cannot change, then each field that can.

    `complete` fills in, after a thaw, the fields that are not stored.
    """

    def __init__(self, freezers: Mapping[str, Freezer], complete: Callable[[object], None]) -> None:
        self.freezers = freezers
        self._complete = complete
        self.plain = [name for name, freezer in freezers.items() if isinstance(freezer, Leaf)]
        self._deep = [name for name in freezers if name not in self.plain]
        plain = tuple_of(*(freezers[name].hint for name in self.plain))
        self.hint = tuple_of(plain, *(freezers[name].hint for name in self._deep))

    def freeze(self, column: Column, shared: Shared) -> Column:
        """One tuple per object."""
        deep = [
            self.freezers[name].freeze(list(map(attrgetter(name), column)), shared)
            for name in self._deep
        ]
        return list(zip(self._plain_columns(column), *deep, strict=True))

    def fill(self, blank: object, value: object, blanks: Blanks) -> None:
        """Makes a blank object, which others may refer to already, what the row says."""
        plain, *deep = cast("Sequence[object]", value)
        for name, item in zip(self.plain, cast("Sequence[object]", plain), strict=True):
            setattr(blank, name, item)
        for name, item in zip(self._deep, deep, strict=True):
            setattr(blank, name, self.freezers[name].thaw(item, blanks))
        self._complete(blank)

    def _plain_columns(self, column: Column) -> Column:
        if not self.plain:
            return [()] * len(column)
        values = list(map(attrgetter(*self.plain), column))
        return [(value,) for value in values] if len(self.plain) == 1 else values


Completions = Mapping[type, Mapping[str, Callable[[object], object]]]


class Freezers:
    """The tables of all classes that can be reached from `root`.

    `left_out` maps fields of a class that are not stored to what stands there after a thaw,
    `unmoved` names fields with an OrderedDict in which no entry is ever moved.

    Raises:
        TypeError: when a field has an annotation that cannot be stored.
    """

    def __init__(self, root: type, left_out: Completions, unmoved: Sequence[str] = ()) -> None:
        self.tables: dict[type, Rows] = {}
        self._unmoved = frozenset(unmoved)
        self._met = [root]
        while self._met:
            cls = self._met.pop(0)
            if cls not in self.tables:
                self.tables[cls] = self._rows(cls, left_out.get(cls, {}))

    def freeze(self, root: object) -> tuple[Sequence[object], ...]:
        """Rows of all tables, in the order of `tables`; the root is the first of its class."""
        shared = {cls: Numbered() for cls in self.tables}
        shared[type(root)].numbers([root])
        frozen: dict[type, list[object]] = {cls: [] for cls in self.tables}
        found = True
        while found:
            found = False
            for cls, rows in frozen.items():
                more = list(islice(shared[cls].objects.values(), len(rows), None))
                if more:
                    rows.extend(self.tables[cls].freeze(more, shared))
                    found = True
        return tuple(frozen.values())

    def thaw(self, frozen: Sequence[Sequence[object]]) -> object:
        """A new root, with everything that belongs to it."""
        blanks: Blanks = {
            cls: [cast("Any", cls).__new__(cls) for _ in rows]
            for cls, rows in zip(self.tables, frozen, strict=True)
        }
        for (cls, table), rows in zip(self.tables.items(), frozen, strict=True):
            for blank, row in zip(blanks[cls], rows, strict=True):
                table.fill(blank, row, blanks)
        return next(iter(blanks.values()))[0]

    @property
    def hint(self) -> object:
        """Type hint of what `freeze` returns."""
        return tuple_of(*(tuple_of(rows.hint, ...) for rows in self.tables.values()))

    def _rows(self, cls: type, left_out: Mapping[str, Callable[[object], object]]) -> Rows:
        freezers = {
            name: self._freezer(hint, f"{cls.__name__}.{name}")
            for name, hint in hints_of(cls).items()
            if name not in left_out
        }
        return Rows(freezers, _completion(left_out))

    def _freezer(self, hint: object, where: str) -> Freezer:  # noqa: PLR0911 - one return per kind
        if immutable(hint):
            return Leaf(hint)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            inner = [arg for arg in args if arg is not types.NoneType]
            if len(inner) == 1:
                freezer = self._freezer(inner[0], where)
                return freezer if isinstance(freezer, Reference) else Optionals(freezer)
        elif origin in (list, set):
            return Sequences(cast("type[list[object]]", origin), self._freezer(args[0], where))
        elif origin is deque:
            return Deques(self._freezer(args[0], where))
        elif origin in (dict, OrderedDict) and immutable(args[0]):
            make = cast("type[dict[object, object]]", origin)
            mapping = Mappings(make, Leaf(args[0]), self._freezer(args[1], where))
            mapping.unmoved = where in self._unmoved
            return mapping
        elif origin is tuple and Ellipsis not in args:
            return Tuples([self._freezer(arg, where) for arg in args])
        elif isinstance(hint, type) and is_dataclass(hint):
            self._met.append(hint)
            return Reference(hint)
        raise TypeError(f"{where}: {hint} cannot be stored in a checkpoint")


def hints_of(cls: type) -> dict[str, object]:
    """Annotations of every field of a dataclass, in order."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def tuple_of(*hints: object) -> object:
    """The type hint `tuple[...]`, made at run time."""
    return types.GenericAlias(tuple, hints)


def immutable(hint: object) -> bool:
    """True for what can never change, judged by its type."""
    if hint in (int, float, str, bool, bytes, None, types.NoneType):
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType, tuple, frozenset):
        return all(arg is Ellipsis or immutable(arg) for arg in args)
    if not isinstance(hint, type):
        return False
    if issubclass(hint, enum.Enum):
        return True
    return is_dataclass(hint) and hint.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _completion(left_out: Mapping[str, Callable[[object], object]]) -> Callable[[object], None]:
    def complete(thawed: object) -> None:
        for name, make in left_out.items():
            setattr(thawed, name, make(thawed))

    return complete
