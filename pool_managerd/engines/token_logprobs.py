"""Log probabilities as engines report them, in the two forms that there are. Bounded.

llama.cpp, and OpenAI's chat completions: a list of tokens, each with `token`, `bytes`, `logprob`
and `top_logprobs` of the same form. OpenAI's older completions: the columns `tokens`,
`token_logprobs` and `top_logprobs`, the last of which holds a table of text and number for each.
"""

import math
from collections.abc import Iterator

from pool_managerd.core.logprobs import TokenLogprob

TOKEN_BYTES_MAX = 256
"""Bytes of a token that are passed on."""


def reported(value: object, top: int) -> tuple[TokenLogprob, ...]:
    """The tokens of one frame with the `top` likeliest of each; what is malformed is left out."""
    if isinstance(value, dict):
        if isinstance(value.get("content"), list):
            return tuple(_listed(value["content"], top))
        return tuple(_columns(value, top))
    return tuple(_listed(value, top)) if isinstance(value, list) else ()


def _listed(entries: list[object], top: int) -> Iterator[TokenLogprob]:
    for entry in entries:
        if isinstance(entry, dict) and (found := _entry(entry)) is not None:
            likeliest = entry.get("top_logprobs")
            others = likeliest if isinstance(likeliest, list) else []
            pairs = [_entry(other) for other in others[:top] if isinstance(other, dict)]
            yield TokenLogprob(*found, tuple(pair for pair in pairs if pair is not None))


def _entry(entry: dict[str, object]) -> tuple[bytes, float] | None:
    logprob = _number(entry.get("logprob"))
    data, text = entry.get("bytes"), entry.get("token")
    if logprob is None or not isinstance(text, str):
        return None
    if isinstance(data, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in data):  # noqa: PLR2004 - bytes
        return bytes(data[:TOKEN_BYTES_MAX]), logprob
    return _bytes(text), logprob


def _columns(value: dict[str, object], top: int) -> Iterator[TokenLogprob]:
    texts, logprobs, likeliest = (
        column if isinstance(column := value.get(name), list) else []
        for name in ("tokens", "token_logprobs", "top_logprobs")
    )
    for index, (text, told) in enumerate(zip(texts, logprobs, strict=False)):
        logprob = _number(told)
        if logprob is None or not isinstance(text, str):
            continue
        table = likeliest[index] if index < len(likeliest) else None
        pairs = table.items() if isinstance(table, dict) else ()
        others = [(_bytes(other), n) for other, told in pairs if (n := _number(told)) is not None]
        others.sort(key=lambda pair: (-pair[1], pair[0]))
        yield TokenLogprob(_bytes(text), logprob, tuple(others[:top]))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    # Some servers count in floats a little above 0.
    return min(0.0, number) if math.isfinite(number) else None


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")[:TOKEN_BYTES_MAX]
