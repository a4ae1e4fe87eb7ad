"""What is wrong with a configuration, in sentences that name the key."""

import difflib
from collections.abc import Sequence

from orchestrator_core.config.text import keys

_ADDRESS_HINT = "write HOST:PORT, e.g. 127.0.0.1:7070"
# What was written instead is not shown: it may be the token.
_PATTERN_HINTS = {
    "sha256": "not a hash of 64 digits from 0 to f; `orchestratord token` prints one",
    "public_key": "not an Ed25519 key; `openssl pkey -pubout` prints it in PEM form",
    "[key]": "a name has 1 to 64 letters, digits, '.', '_' or '-'",
    "host_id": "1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'",
}


class ConfigError(Exception):
    """The configuration cannot be used. `problems` names every key that is wrong, and why."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def sentences(location: tuple[int | str, ...], kind: str, message: str) -> list[str]:
    """Sentences about one error of the validation: its key, and what is wrong."""
    name = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return [f"{name}: unknown key; did you mean {_nearest(location)}?"]
    if not name:
        return message.removeprefix("Value error, ").split("\n")
    if kind == "string_pattern_mismatch":
        return [f"{name}: {_PATTERN_HINTS.get(str(location[-1]), _ADDRESS_HINT)}"]
    if location[-1] == "expires":
        return [f"{name}: write a date and time with its offset, e.g. 2027-01-31T00:00:00Z"]
    return [f"{name}: {message[0].lower()}{message[1:]}"]


def _nearest(location: tuple[int | str, ...]) -> str:
    """The same key in another table, else the key of its own table that looks most like it."""
    table, key = "".join(f"{part}." for part in location[:-1]), str(location[-1])
    known = [each.path for each in keys()]
    for name in known:
        if name.rpartition(".")[2] == key:
            return name
    beside = {
        table + name.removeprefix(table).partition(".")[0]: None
        for name in known
        if name.startswith(table)
    }
    return max(
        beside or known, key=lambda name: difflib.SequenceMatcher(a=table + key, b=name).ratio()
    )
