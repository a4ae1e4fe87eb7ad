"""Workload traces: who asks for how much, and when."""

import csv
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROWS_MAX = 5_000_000
TOKENS_MAX = 10_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace. `arrival_ms` counts from the first one."""

    arrival_ms: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class _Columns:
    """How one kind of file names its columns, and how its instants are read."""

    arrival: str
    prompt: str
    output: str
    arrival_ms: Callable[[str], float]


def _instant_ms(text: str) -> float:
    """Reads an instant such as `2023-11-16 18:15:46.6805900`; only differences count."""
    whole, _, fraction = text.partition(".")
    seconds = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
    return 1000.0 * seconds + (1000.0 * float(f"0.{fraction}") if fraction else 0.0)


# Sources: Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv; kvcache-ai/Mooncake,
# FAST25-release/traces. The third is the user's own, as docs/simulator.md describes it.
_KINDS = (
    _Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", _instant_ms),
    _Columns("timestamp", "input_length", "output_length", float),
    _Columns("arrival_ms", "prompt_tokens", "output_tokens", float),
)
_EXPECTED = "arrival_ms, prompt_tokens, output_tokens"


def load_trace(path: Path, limit: int | None = None) -> tuple[Request, ...]:
    """Reads the first `limit` rows of a CSV file with a header, or of a JSONL file.

    Columns: those of the Azure or the Mooncake traces, or arrival_ms, prompt_tokens and
    output_tokens. Other columns are ignored.

    Raises:
        ValueError: when a line is wrong; file, line and what to change are named.
        OSError: when the file cannot be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
            rows: Iterator[tuple[int, Mapping[str, Any]]] = _json_rows(path, file)
        elif path.suffix.lower() == ".csv":
            reader = csv.DictReader(file)
            rows = ((reader.line_num, row) for row in reader)
        else:
            raise ValueError(f"{path}: the name must end in .csv or .jsonl")
        try:
            return _requests(path, rows, min(limit or ROWS_MAX, ROWS_MAX))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from error
        except csv.Error as error:
            raise ValueError(f"{path}: not CSV ({error})") from error


def _json_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            # A wrong file is a wrong value to the caller, whatever JSON type it holds.
            raise ValueError(f"{path}, line {number}: must be an object with {_EXPECTED}")  # noqa: TRY004 - see above
        yield number, row


def _requests(
    path: Path, rows: Iterator[tuple[int, Mapping[str, Any]]], limit: int
) -> tuple[Request, ...]:
    found: list[Request] = []
    columns: _Columns | None = None
    for number, row in rows:
        if len(found) == limit:
            break
        if columns is None:
            columns = _columns(path, number, row)
        found.append(_request(path, number, row, columns))
    if not found:
        raise ValueError(f"{path}: no requests; each needs {_EXPECTED}")
    return from_zero(found)


def from_zero(requests: Sequence[Request]) -> tuple[Request, ...]:
    """Returns requests in order of arrival, the first at 0. Ties keep their order."""
    ordered = sorted(requests, key=lambda r: r.arrival_ms)
    first_ms = ordered[0].arrival_ms
    return tuple(
        Request(r.arrival_ms - first_ms, r.prompt_tokens, r.output_tokens) for r in ordered
    )


def _columns(path: Path, number: int, row: Mapping[str, Any]) -> _Columns:
    for kind in _KINDS:
        if {kind.arrival, kind.prompt, kind.output} <= row.keys():
            return kind
    have = ", ".join(str(key) for key in row) or "nothing"
    raise ValueError(f"{path}, line {number}: the columns must be {_EXPECTED}; found {have}")


def _request(path: Path, number: int, row: Mapping[str, Any], columns: _Columns) -> Request:
    where = f"{path}, line {number}"
    text = row.get(columns.arrival)
    try:
        arrival_ms = columns.arrival_ms(str(text))
    except ValueError:
        arrival_ms = float("nan")
    if not 0 <= arrival_ms < float("inf"):
        raise ValueError(f"{where}: {columns.arrival} is no instant: {text!r}")
    return Request(
        arrival_ms,
        _count(where, row, columns.prompt, 0),
        _count(where, row, columns.output, 1),
    )


def _count(where: str, row: Mapping[str, Any], column: str, least: int) -> int:
    value = row.get(column)
    if value is None:
        raise ValueError(f"{where}: {column} is missing")
    try:
        count = int(str(value))
    except ValueError:
        count = -1
    if not least <= count <= TOKENS_MAX:
        raise ValueError(
            f"{where}: {column} must be a whole number from {least} to {TOKENS_MAX}, is {value!r}"
        )
    return count


def synthetic(seed: int, count: int = 10_000) -> tuple[Request, ...]:
    """Makes a trace: bursty or Poisson arrivals, skewed lengths; the same for the same seed.

    The seed also draws how bursty the arrivals and how skewed the lengths are.
    """
    rng = random.Random(seed)  # noqa: S311 - a made-up trace, not a secret
    burst = rng.choice((1.0, 1.0, 3.0, 8.0))
    prompt, output = rng.uniform(100.0, 2000.0), rng.uniform(30.0, 500.0)
    prompt_spread, output_spread = rng.uniform(0.3, 1.5), rng.uniform(0.3, 1.5)
    arrival_ms, fast, found = 0.0, False, []
    for _ in range(count):
        if rng.random() < 0.01:  # noqa: PLR2004 - a phase lasts for a hundred arrivals on average
            fast = not fast
        gap_ms = 1000.0 / (burst if fast else 1.0 / burst)
        arrival_ms += rng.expovariate(1.0) * gap_ms
        found.append(
            Request(
                arrival_ms,
                max(1, int(prompt * rng.lognormvariate(0.0, prompt_spread))),
                max(1, int(output * rng.lognormvariate(0.0, output_spread))),
            )
        )
    return from_zero(found)
