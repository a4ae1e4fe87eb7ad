# SPDX-License-Identifier: Apache-2.0
"""Frames as plain lines, and what a stream can show."""

import os
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, ConsoleDimensions
from rich.text import Text

from llamaorch_client.cli.top.grid import ASCII, UNICODE, Glyphs

SIZE_UNKNOWN = os.terminal_size((80, 24))


def glyphs_of(stream: TextIO) -> Glyphs:
    """What a stream can show."""
    try:
        (UNICODE.full + UNICODE.rule + UNICODE.arrow).encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def console_of(stream: TextIO) -> Console:
    """A console that prints text as it is; without colours where NO_COLOR asks for it."""
    return Console(file=stream, markup=False, highlight=False, emoji=False)


def write_lines(lines: Sequence[Text], console: Console, width: int) -> None:
    """Writes lines one below the other, without the spaces at their ends."""
    console.size = ConsoleDimensions(width, max(1, len(lines)))
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True)
