"""What of an engine's log may be shown to people elsewhere. ORCH-3300.

A log that was written while an engine starts holds settings and errors; one that it writes while it
serves may quote requests. Secrets are masked in both; of the latter only lines that tell of a
failure are shown, and none that quotes what was asked.
"""

import json
import re
from collections.abc import Iterable

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
_WINDOW_CHARS = 16


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
    texts = tuple(requests)
    asked = (*texts, *(json.dumps(text)[1:-1] for text in texts))
    return tuple(line for line in lines if _DIAGNOSIS.search(line) and not _quotes(line, asked))


def _quotes(line: str, requests: tuple[str, ...]) -> bool:
    # Aligned windows of the line: any common run of 31 characters holds one of them.
    starts = range(0, len(line) - _WINDOW_CHARS + 1, _WINDOW_CHARS)
    windows = [line[start : start + _WINDOW_CHARS] for start in starts]
    return any(window in text for text in requests for window in windows)
