# SPDX-License-Identifier: Apache-2.0
"""What is stated of a model in a file: its keys, what each may hold, and what is wrong.

The keys are the fields of `CatalogModel` that an operator states, by their names in
`catalog_service.proto`. The server judges the values; what no value of the key could be is found
here, and told by the key (ORCH-3031).
"""

import difflib
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaorch_client.cli.failure import UsageError
from llamaorch_client.cli.values import UINT32_MAX, UINT64_MAX
from llamaorch_client.model_catalog import CatalogModel, ModelDimensions
from llamaorch_client.request import Requirements

FILE_BYTES_MAX = 1 << 20
PROBLEMS_SHOWN = 8
VALUE_CHARS_MAX = 40


@dataclass(frozen=True, slots=True)
class Kind:
    """What a key may hold: in words, and as a check."""

    words: str
    fits: Callable[[object], bool]


def _whole(low: int, high: int) -> Kind:
    def fits(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Kind(f"a whole number from {low} to {high}", fits)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # A whole number may have more digits than any float.
    return abs(value) <= sys.float_info.max


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_labels(value: object) -> bool:
    return isinstance(value, dict) and _are_texts(list(value.values()))


_TEXT = Kind("a text", lambda value: isinstance(value, str))
_TEXTS = Kind("a list of texts", _are_texts)
_COUNT = _whole(0, UINT32_MAX)
_POSITIVE = _whole(1, UINT32_MAX)

DIMENSIONS: Mapping[str, Kind] = {
    "layers": _POSITIVE,
    "kv_heads": _POSITIVE,
    "key_length": _COUNT,
    "value_length": _COUNT,
    "window_layers": _COUNT,
    "window_tokens": _COUNT,
    "key_type": _TEXT,
    "value_type": _TEXT,
}
REQUIREMENTS: Mapping[str, Kind] = {
    "min_vram_bytes": _whole(0, UINT64_MAX),
    "quantization": _TEXT,
    "min_compute_cap": _TEXT,
    "required_extensions": _TEXTS,
    "device_mask": _TEXTS,
}
KEYS: Mapping[str, Kind | Mapping[str, Kind]] = {
    "model_id": _TEXT,
    "aliases": _TEXTS,
    "model_ref": _TEXT,
    "digest": _TEXT,
    "signature": _TEXT,
    "engines": _TEXTS,
    "engine_version": _TEXT,
    "sampler_profile_version": _TEXT,
    "ctx_max": _POSITIVE,
    "dimensions": DIMENSIONS,
    "requirements": REQUIREMENTS,
    "bytes_per_token": Kind("a number", _is_number),
    "expected_tokens": _POSITIVE,
    "labels": Kind("a table of texts", _is_labels),
}


def read(path: str) -> dict[str, Any]:
    """The keys of a TOML or JSON file, by its name's ending.

    Raises:
        UsageError: it cannot be read; a key is not known, or cannot have its value. All of these
            are named.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise UsageError(f"{path}: has more than {FILE_BYTES_MAX} bytes")
        text = data.decode()
        stated = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.endswith(".json") else "TOML (the name of a JSON file ends in .json)"
        raise UsageError(f"{path}: is no {kind}: {error}") from error
    if not isinstance(stated, dict):
        raise UsageError(f"{path}: holds no table of keys; it may have {', '.join(KEYS)}")
    found = list(problems(stated))
    if found:
        shown, more = found[:PROBLEMS_SHOWN], len(found) - PROBLEMS_SHOWN
        lines = "\n".join(f"  {problem}" for problem in shown)
        rest = f"\n  and {more} more" if more > 0 else ""
        raise UsageError(f"{path} does not state a model:\n{lines}{rest}")
    return stated


def model(stated: Mapping[str, Any]) -> CatalogModel:
    """The model that checked keys state. What is not said of its dimensions is 0."""
    given = dict(stated)
    for key in ("aliases", "engines"):
        if key in given:
            given[key] = tuple(given[key])
    if "dimensions" in given:
        sizes = dict.fromkeys(("layers", "kv_heads", "key_length", "value_length"), 0)
        given["dimensions"] = ModelDimensions(**{**sizes, **given["dimensions"]})
    if "requirements" in given:
        needed = dict(given["requirements"])
        for key in ("required_extensions", "device_mask"):
            if key in needed:
                needed[key] = tuple(needed[key])
        given["requirements"] = Requirements(**needed)
    return CatalogModel(**given)


def problems(stated: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with keys and values, a sentence each; nothing where all is well."""
    yield from _problems(stated, KEYS, "")


def _problems(
    stated: Mapping[str, Any], allowed: Mapping[str, Kind | Mapping[str, Kind]], under: str
) -> Iterator[str]:
    for key, value in stated.items():
        kind = allowed.get(key)
        if kind is None:
            yield f"`{under}{key}` is no key; {_instead(key, allowed)}"
        elif isinstance(kind, Kind):
            if not kind.fits(value):
                yield f"`{under}{key}` must be {kind.words}, is {_shown(value)}"
        elif isinstance(value, dict):
            yield from _problems(value, kind, f"{under}{key}.")
        else:
            yield f"`{under}{key}` must be a table with {', '.join(kind)}, is {_shown(value)}"


def _instead(key: str, allowed: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, allowed, 1)
    return f"`{near[0]}` may be meant" if near else f"allowed are {', '.join(allowed)}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python writes no whole number with more than some thousand digits.
        text = "a very large number"
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"
