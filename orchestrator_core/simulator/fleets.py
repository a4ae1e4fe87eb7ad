"""Fleets: what pools there are and how fast they are."""

import random
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

SLOTS_MAX = 1024
POOLS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A simulated pool.

    `prefill` and `decode` are tokens per second of one stream alone; with k busy slots each stream
    decodes at `decode / (1 + slope * (k - 1))`.

    Raises:
        ValueError: when a number is out of range; the pool and the field are named.
    """

    id: str
    slots: int
    prefill: float
    decode: float
    slope: float = 0.0
    vram_gib: float | None = None
    compute_capability: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be simulated."""
        if not 1 <= self.slots <= SLOTS_MAX:
            raise ValueError(f"pool {self.id}: slots must be 1 to {SLOTS_MAX}, is {self.slots}")
        for name in ("prefill", "decode"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"pool {self.id}: {name} must be positive, is {value}")
        if not 0 <= self.slope < float("inf"):
            raise ValueError(f"pool {self.id}: slope must not be negative, is {self.slope}")

    def tokens_per_ms(self, busy: int) -> float:
        """Decode rate of each stream while `busy` slots are taken."""
        return self.decode / (1.0 + self.slope * (busy - 1)) / 1000.0

    def service_ms(self, prompt_tokens: float, output_tokens: float, busy: int) -> float:
        """What a job takes while `busy` slots stay taken."""
        return 1000.0 * prompt_tokens / self.prefill + output_tokens / self.tokens_per_ms(busy)


_NAMES = frozenset(f.name for f in fields(PoolSpec))
_REQUIRED = ("id", "slots", "prefill", "decode")


def load_fleet(path: Path, name: str) -> tuple[PoolSpec, ...]:
    """Reads fleet `name` of a TOML file: `[fleets.NAME] pools = [{ id, slots, … , count }]`.

    Raises:
        ValueError: when the file, the fleet or a pool is wrong; the message says what to change.
        OSError: when the file cannot be read.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from error
    fleets = content.get("fleets")
    if not isinstance(fleets, dict) or not fleets:
        raise ValueError(f"{path}: no [fleets.NAME] table; see docs/simulator.md for an example")
    if name not in fleets:
        raise ValueError(f"{path}: no fleet {name!r}; it has {', '.join(sorted(fleets))}")
    fleet = fleets[name]
    entries = fleet.get("pools", []) if isinstance(fleet, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: fleet {name}: must be a table with pools = [{{ id, slots, … }}]")
    pools: list[PoolSpec] = []
    for number, entry in enumerate(entries, 1):
        pools += _copies(entry, f"{path}: fleet {name}, pool {number}")
    return checked(pools, f"{path}: fleet {name}")


def checked(pools: Sequence[PoolSpec], where: str) -> tuple[PoolSpec, ...]:
    """Returns the fleet if it can be simulated. Raises ValueError."""
    if not 1 <= len(pools) <= POOLS_MAX:
        raise ValueError(f"{where}: a fleet has 1 to {POOLS_MAX} pools, this one {len(pools)}")
    seen: set[str] = set()
    for pool in pools:
        if pool.id in seen:
            raise ValueError(f"{where}: two pools are named {pool.id!r}; use count for copies")
        seen.add(pool.id)
    return tuple(pools)


def _copies(entry: dict[str, Any], where: str) -> list[PoolSpec]:
    unknown = sorted(set(entry) - _NAMES - {"count"})
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_NAMES))}")
    missing = [key for key in _REQUIRED if key not in entry]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    values = {key: value for key, value in entry.items() if key != "count"}
    if "compute_capability" in values:
        values["compute_capability"] = _capability(str(values["compute_capability"]), where)
    try:
        pool, count = PoolSpec(**values), int(entry.get("count", 1))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if "count" not in entry:
        return [pool]
    return [replace(pool, id=f"{pool.id}-{number:02d}") for number in range(1, count + 1)]


def _capability(text: str, where: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise ValueError(f'{where}: compute_capability must look like "8.6", is {text!r}')
    return int(major), int(minor)


def random_fleet(seed: int) -> tuple[PoolSpec, ...]:
    """Makes a plausible fleet of one to four kinds of cards; the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - a made-up fleet, not a secret
    pools: list[PoolSpec] = []
    for kind in range(rng.randint(1, 4)):
        decode = 10.0 * 12.0 ** rng.random()
        base = PoolSpec(
            id=f"kind{kind + 1}",
            slots=rng.choice((1, 2, 4, 8, 16, 32)),
            prefill=round(decode * rng.uniform(20.0, 200.0)),
            decode=round(decode, 1),
            slope=0.0,
            vram_gib=rng.choice((8, 12, 16, 24, 40, 80)),
            compute_capability=(rng.randint(6, 9), 0),
        )
        # A card with many slots loses little per stream; else its last slots would cost more
        # than they bring.
        slope = round(rng.uniform(0.2, 0.9) / base.slots, 3)
        count = rng.randint(1, 8)
        pools += [
            replace(base, id=f"{base.id}-{number:02d}", slope=slope)
            for number in range(1, count + 1)
        ]
    return checked(pools, f"random fleet {seed}")


_CHANGE = re.compile(r"([+-])([^*:,\s]+)(?:\*([1-9]\d*))?(?::(.+))?")


def what_if(fleet: Sequence[PoolSpec], change: str) -> tuple[PoolSpec, ...]:
    """Returns the fleet after changes such as `+rtx3060`, `-t4*2` or `+new:slots=4,decode=90,…`.

    Several are separated by spaces. `+NAME` copies a pool of that name, or of that kind (`t4` for
    `t4-01`); with values after a colon it adds a new kind.

    Raises:
        ValueError: when a change cannot be made; the message says what the fleet has.
    """
    pools = list(fleet)
    for part in change.split():
        match = _CHANGE.fullmatch(part)
        if match is None:
            raise ValueError(
                f"--what-if {part!r}: must look like +NAME, -NAME, +NAME*2 or "
                "+NAME:slots=4,prefill=3000,decode=80,slope=0.1"
            )
        sign, name, times, values = match.groups()
        for _ in range(int(times or 1)):
            if sign == "+":
                pools.append(_another(pools, fleet, name, values))
            else:
                pools.remove(_alike(pools, name)[-1])
    return checked(pools, f"--what-if {change}")


def _alike(pools: Sequence[PoolSpec], name: str) -> list[PoolSpec]:
    found = [pool for pool in pools if pool.id == name or kind_of(pool.id) == name]
    if not found:
        names = ", ".join(sorted({kind_of(pool.id) for pool in pools}))
        raise ValueError(f"--what-if: the fleet has no pool {name!r}; it has {names}")
    return found


def kind_of(pool_id: str) -> str:
    """The name that copies of a pool have in common: `t4` of `t4-03`."""
    return re.sub(r"-\d\d+$", "", pool_id)


def _another(
    pools: Sequence[PoolSpec], fleet: Sequence[PoolSpec], name: str, values: str | None
) -> PoolSpec:
    if values is None:
        model = _alike(pools if any(kind_of(p.id) == name for p in pools) else fleet, name)[0]
    else:
        pairs = dict(part.partition("=")[::2] for part in values.split(","))
        entry: dict[str, Any] = {"id": name}
        for key, text in pairs.items():
            try:
                entry[key] = int(text) if key == "slots" else float(text)
            except ValueError:
                raise ValueError(
                    f"--what-if +{name}: {key} must be a number, is {text!r}"
                ) from None
        model = _copies(entry, f"--what-if +{name}")[0]
    taken = {pool.id for pool in pools}
    if model.id not in taken:
        return model
    kind, number = kind_of(model.id), 2
    while f"{kind}-{number:02d}" in taken:
        number += 1
    return replace(model, id=f"{kind}-{number:02d}")
