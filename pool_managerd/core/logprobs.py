"""Log probabilities of generated tokens, and what holding them costs."""

from dataclasses import dataclass

PIECE_TOKENS_MAX = 64
"""Tokens of one piece whose log probabilities are kept; most pieces are one token."""

_ENTRY_BYTES = 100


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was: the bytes of its text, the natural logarithm of its probability.

    `top` are the likeliest at its place, the first one first.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


def logprobs_cost_bytes(tokens: tuple[TokenLogprob, ...]) -> int:
    """Memory charged for the tokens of a piece; more than they take on the wire."""
    size = 0
    for token in tokens:
        size += _ENTRY_BYTES + len(token.token)
        for text, _ in token.top:
            size += _ENTRY_BYTES + len(text)
    return size
