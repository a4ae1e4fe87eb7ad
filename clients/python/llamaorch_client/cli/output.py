# SPDX-License-Identifier: Apache-2.0
"""Where the command writes: results to stdout, everything about them to stderr.

On a terminal there are colours and one progress line; into a pipe goes plain text, and a job's
output byte for byte, in UTF-8.
"""

import contextlib
import dataclasses
import json
import math
import os
import select
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, BinaryIO, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# Wide enough that no table is wrapped or cut: a pipe is for other programs, and on a narrow
# terminal a long line that the terminal breaks is easier to read and copy than words in pieces.
TABLE_WIDTH = 400
# What a table that can be cut to a width is cut to where there is no terminal.
PIPE_WIDTH = 100
# They show what follows in another order than it has: embeddings, overrides, isolates.
# Source: Unicode Standard Annex 9, section 2.
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = {
    code: None for code in (*range(32), *range(127, 160), *_TURNING) if chr(code) not in "\n\t"
}
# What JSON leaves as it is, and a terminal would obey.
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(127, 160), *_TURNING)}


class OutputError(Exception):
    """Standard output does not take what is written, as on a full disk; the message says why."""


def printable(text: str) -> str:
    """Returns text without characters that could rewrite the reader's terminal or turn a line."""
    return text.translate(_CONTROLS)


def plain(value: object) -> Any:
    """Returns dataclasses, instants and tuples as what JSON knows; instants as RFC 3339.

    JSON has no infinity: a number without a value is None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Output:
    """The two streams of one command, and whether it speaks JSON."""

    def __init__(self, as_json: bool, stdout: TextIO | None = None, stderr: TextIO | None = None):
        self.as_json = as_json
        self._stdout = stdout if stdout is not None else sys.stdout
        self._stderr = stderr if stderr is not None else sys.stderr
        # Not what Rich takes for terminals: FORCE_COLOR asks for colours, of a pipe too.
        self._on_screen, self._err_on_screen = self._stdout.isatty(), self._stderr.isatty()
        self._out = _console(self._stdout, TABLE_WIDTH)
        self._err = _console(self._stderr, None if self._err_on_screen else TABLE_WIDTH)
        self._screen = _console(self._stdout, None)
        #: Cells that a line of the result should fit into.
        self.width = self._screen.width if self._on_screen else PIPE_WIDTH
        self._live: Live | None = None
        self._line_open = False
        self._text_on_screen = False
        self._piped = _is_pipe(self._stdout)

    def token_text(self, text: str) -> None:
        """Writes a piece of a job's output; on a terminal without control characters."""
        if self._on_screen or self._piped:
            # The text and the progress line would overwrite each other on one screen. What reads a
            # pipe may write to that screen, as `cat` does.
            self.end_progress()
            self._text_on_screen = True
        if self._on_screen:
            text = printable(text)
        with _told():
            self._write(text)
        if text:
            self._line_open = not text.endswith("\n")

    def content(self, data: bytes) -> None:
        """Writes bytes as they are."""
        with _told():
            self._stdout.flush()
            _write_all(self._stdout.buffer, data)

    def record(self, value: object) -> None:
        """Writes one JSON object as one line."""
        text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
        with _told():
            self._write(text.translate(_ESCAPED) + "\n")

    def _write(self, text: str) -> None:
        """Writes to stdout; in UTF-8 unless people read it, whatever they type and read in."""
        binary = getattr(self._stdout, "buffer", None)
        if self._on_screen or binary is None:
            self._stdout.write(text)
        self._stdout.flush()
        if not self._on_screen and binary is not None:
            _write_all(binary, text.encode(errors="replace"))

    def result(self, text: str) -> None:
        """Writes a line of the command's result."""
        with _told():
            self._out.print(Text(printable(text)), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Writes a table; the cells may come from a server."""
        with _told():
            if title:
                # Not the table's own title, which would be wrapped to the width of the table.
                self._out.print(Text(printable(title), "bold"), soft_wrap=True)
            self._out.print(_table(columns, rows))

    def live_table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]
    ) -> bool:
        """Shows a table and lines below it in the place of the former ones, as far as they fit.

        False, without writing anything, unless the result goes to a terminal that can do this.
        """
        if not self._on_screen or self._screen.is_dumb_terminal:
            return False
        if self._live is None:
            self._live = Live(console=self._screen, auto_refresh=False)
            self._live.start()
        below = [Text(printable(line), no_wrap=True, overflow="crop") for line in lines]
        self._live.update(Group(_Whole(_table(columns, rows)), *below), refresh=True)
        return True

    def say(self, text: str, style: str = "") -> None:
        """Writes a line about the result to stderr, below what is there."""
        self.end_progress()
        with _heard():
            if self._line_open:
                self._end_line()
            self._err.print(Text(printable(text), style), soft_wrap=True)

    def _end_line(self) -> None:
        """Ends a line of output on the screen, so that nothing stands behind it."""
        self._line_open = False
        if self._on_screen:
            self._stdout.write("\n")
            self._stdout.flush()
        elif self._err_on_screen and self._piped:
            # The output itself stays as it is; what reads it may write it to this terminal.
            self._stderr.write("\n")

    def about(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Writes a table about the result to stderr, below what is there; none without rows."""
        if rows:
            self.say("")
            with _heard():
                self._err.print(_table(columns, rows))

    def progress(self, line: str) -> None:
        """Shows the progress line: on a terminal, and until a job's own output begins there."""
        if not self._err_on_screen or self._text_on_screen:
            return
        if self._live is None:
            self._live = Live(console=self._err, transient=True, auto_refresh=False)
            self._live.start()
        text = Text(printable(line), "dim", no_wrap=True, overflow="ellipsis")
        self._live.update(text, refresh=True)

    def end_progress(self) -> None:
        """Removes the progress line; a live table stays as it was last."""
        live, self._live = self._live, None
        if live is not None:
            # Its terminal may be gone, while there is still something to put in order.
            with contextlib.suppress(OSError):
                live.stop()


def _write_all(binary: BinaryIO, data: bytes) -> None:
    """Writes all of it, past what is buffered.

    A signal cuts a write short where nothing is buffered, and a pipe that another program has made
    one that never waits takes nothing while it is full.
    """
    raw, rest = getattr(binary, "raw", binary), memoryview(data)
    while rest:
        written = raw.write(rest)
        if written is None:
            select.select([], [raw], [])
        rest = rest[written or 0 :]


class _Console(Console):
    """A console that leaves it to the command what the end of a pipe means."""

    def on_broken_pipe(self) -> None:
        """Raises it again; Rich would end the process, and the job it follows would go on."""
        raise BrokenPipeError


class _Whole:
    """A table as wide as it is, of which a live display shows what fits, from the left.

    Lines that the terminal wraps would be counted as one when the next ones take their place.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = options.update(width=max(TABLE_WIDTH, options.max_width))
        for line in console.render_lines(self._table, whole, pad=False):
            yield from line
            yield Segment.line()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Says of errors that they are those of standard output; a reader that left is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror}") from error


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Leaves what is said unsaid where standard error does not take it; the result is what counts.

    A reader that left is told as such: it may have been that of the result too.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


def _cell(text: str) -> Text:
    """One line: a table would be torn by a second one."""
    return Text(printable(text).replace("\n", " "))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, header_style="dim", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _is_pipe(stream: TextIO) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except OSError:
        # It has no descriptor.
        return False


def _console(stream: TextIO, width: int | None) -> Console:
    return _Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
