"""What of an engine's log may be shown to people elsewhere. ORCH-3300.

A log that was written while an engine starts holds settings and errors; one that it writes while it
serves may quote requests. Secrets are masked in both; of the latter only lines that tell of a
failure are shown, and none that quotes what was asked.
"""

import json
import re
from collections.abc import Iterable, Iterator

from pool_managerd.core.tellable import shown_text

LINE_CHARS = 300
"""Characters of a line that are shown."""

_MASK = "***"
_SECRET = re.compile(
    r"""(?ix)
      (?P<name> (?:\b|_) (?:authorization|bearer|(?:api|access|secret|private)[-_]?key|token|secret
                        |password|passwd|signature)\b
                ["']? \s* [:=]? \s* (?:(?:bearer|basic)\s+)? [\["']* ) (?P<value> [^\s"',;]{6,} )
    | (?P<url> ://[^/\s:@]*: ) (?P<userinfo> [^/\s@]+ ) (?=@)
    | \b (?:hf_|sk-|ghp_|xox[abp]-|AKIA) [A-Za-z0-9_-]{8,}
    | \b eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*
    """
)
_DIAGNOSIS = re.compile(
    r"(?i)\b(?:error|fatal|panic|abort(?:ed)?|assert(?:ion)?|segmentation fault|terminate called|"
    r"out of memory|killed|traceback|exception|cannot|could not|failed|failure)\b"
)
WINDOW_CHARS = 16
"""Characters that are compared at a time."""

_NOWHERE: set[int] = set()


def masked(line: str, secrets: Iterable[str] = ()) -> str:
    """The line without what looks like a secret and without `secrets`, cut to `LINE_CHARS`."""
    for secret in secrets:
        if secret:
            line = line.replace(secret, _MASK)
    return _SECRET.sub(_without_value, line)[:LINE_CHARS]


def _without_value(found: "re.Match[str]") -> str:
    return f"{found['name'] or found['url'] or ''}{_MASK}"


def diagnoses(lines: Iterable[str], requests: Iterable[str]) -> tuple[str, ...]:
    """The lines that tell of a failure and quote no 31 characters of any text in `requests`.

    Neither as it is nor as JSON writes it.
    """
    telling = [line for line in lines if _DIAGNOSIS.search(line)]
    quoted = quoting(telling, _as_written(requests))
    return tuple(line for index, line in enumerate(telling) if index not in quoted)


def quoting(lines: Iterable[str], texts: Iterable[str]) -> set[int]:
    """Indexes of the lines that have a run of 31 characters in common with one of `texts`.

    A run of 16 may count too. O(characters of `lines` + characters of `texts` / 16): a prompt may
    have millions of them, and whoever asks holds everybody else up.
    """
    places: dict[str, set[int]] = {}
    for index, line in enumerate(lines):
        for start in range(len(line) - WINDOW_CHARS + 1):
            places.setdefault(line[start : start + WINDOW_CHARS], set()).add(index)
    found: set[int] = set()
    for text in texts if places else ():
        # Aligned windows of the text: any common run of 31 characters holds one of them.
        for start in range(0, len(text) - WINDOW_CHARS + 1, WINDOW_CHARS):
            found |= places.get(text[start : start + WINDOW_CHARS], _NOWHERE)
    return found


def _as_written(requests: Iterable[str]) -> Iterator[str]:
    for text in requests:
        # As it is, as JSON writes it, and as lines are kept.
        yield from {text, json.dumps(text)[1:-1], shown_text(text)}
