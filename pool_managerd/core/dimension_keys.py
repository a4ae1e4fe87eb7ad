"""Numbers of a model's metadata: whatever a file says is checked before it is believed. LO-205."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from pool_managerd.core.kv_size import DimensionsError, Layer, ModelDimensions

LAYERS_MAX = 4_096
NUMBER_MAX = 1 << 32


class Keys:
    """A mapping from a file. `prefix` goes before every name, also in errors."""

    def __init__(self, values: Mapping[str, object], prefix: str = "") -> None:
        self._values, self._prefix = values, prefix

    def has(self, name: str) -> bool:
        """True when the key is there and not null."""
        return self._values.get(self._prefix + name) is not None

    def number(self, *names: str, least: int = 0, default: int | None = None) -> int:
        """The first of `names` that is there; of a list the largest entry.

        Raises:
            DimensionsError: when none is there and there is no default, or the value cannot be.
        """
        for name in names:
            if self.has(name):
                field, value = self._prefix + name, self._values[self._prefix + name]
                entries = value if _is_list(value) else (value,)
                return max((_checked(field, entry, least) for entry in entries), default=least)
        if default is None:
            raise DimensionsError(self._prefix + names[0], "is missing")
        return default

    def per_layer(self, name: str, count: int, default: int) -> tuple[int, ...]:
        """One number for each layer: a list, or the same for all.

        Raises:
            DimensionsError: when the list is too short or a value cannot be.
        """
        entries = self.listed(name)
        if entries is None:
            return (self.number(name, default=default),) * count
        field = self._prefix + name
        if len(entries) < count:
            raise DimensionsError(field, f"has {len(entries)} entries for {count} layers")
        return tuple(_checked(field, entry, 0) for entry in entries[:count])

    def listed(self, name: str) -> Sequence[object] | None:
        """The value where it is a list, else None."""
        value = self._values.get(self._prefix + name)
        return value if _is_list(value) else None


@dataclass(frozen=True, slots=True)
class Sliding:
    """Which layers of an architecture slide: all but the last of every `period`.

    With period 0 all do, with period 1 none. `window` stands in for a key that is absent; with
    `fixed` it also replaces one that is there.
    """

    period: int
    window: int = 0
    fixed: bool = False


def slides(index: int, period: int) -> bool:
    """Whether layer `index` slides. Source: llama.cpp, `llama_hparams::set_swa_pattern`."""
    return period == 0 or index % period < period - 1


def judged(layers: Sequence[Layer], name: str, *, known: bool) -> ModelDimensions:
    """The dimensions, with a note where they are only a bound."""
    note = "" if known else f"architecture {name!r:.60} is not known: full attention is assumed"
    return ModelDimensions(tuple(layers), exact=known, note=note)


def layer_count(field: str, count: int) -> int:
    """`count`, unless no model has so many layers.

    Raises:
        DimensionsError: naming `field`.
    """
    if not 1 <= count <= LAYERS_MAX:
        raise DimensionsError(field, f"leaves {count} layers, must be 1 to {LAYERS_MAX}")
    return count


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _checked(field: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DimensionsError(field, f"is {value!r:.40}, must be a whole number")
    if not least <= value <= NUMBER_MAX:
        raise DimensionsError(field, f"is {value}, must be {least} to {NUMBER_MAX}")
    return value
