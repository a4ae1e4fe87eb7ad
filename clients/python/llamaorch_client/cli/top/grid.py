# SPDX-License-Identifier: Apache-2.0
"""Tables that fit: columns that give way, bars, and lines that never exceed their width."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

from llamaorch_client.cli.top.state import Mark

MARGIN = "  "
CURSOR = "> "
BAR_CELLS_MIN = 3


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What is drawn with, by what the terminal can show."""

    full: str
    empty: str
    rule: str
    arrow: str
    ellipsis: str


UNICODE = Glyphs("█", "░", "─", "→", "…")
ASCII = Glyphs("#", ".", "-", "->", "~")


@dataclass(frozen=True, slots=True)
class Bar:
    """A share as a bar with words after it; only the words where it is None or there is no room."""

    share: float | None
    words: str
    style: str


# A Text must be clean already.
Cell = str | Text | Bar


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `width` cells. The highest `drop` goes first where all do not fit; 0 never goes.

    What is left is shared by those that `grow`.
    """

    title: str
    width: int
    drop: int = 0
    grow: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table. `mark` makes it selectable. A line without cells is one sentence."""

    cells: tuple[Cell, ...] = ()
    mark: Mark | None = None
    sentence: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A table under a title, which takes the place of its first column's."""

    title: str
    columns: tuple[Column, ...]
    lines: Sequence[Line]
    empty: str = ""

    @property
    def height(self) -> int:
        """Lines that all of it takes."""
        return 1 + max(len(self.lines), 1 if self.empty else 0)


def clean(text: str) -> str:
    """Text in one line, without anything that moves the cursor or turns the line around."""
    return "".join(" " if c in "\n\t" else c for c in text if c in "\n\t" or _shown(c))


def _shown(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] != "C" and category not in ("Zl", "Zp")


def allot(wanted: Sequence[int], room: int, least: int = 3) -> list[int]:
    """Shares `room` lines: first `least` to each from the top, then whole turns of one line.

    Nobody gets more than it wants; the sum is at most `room`.
    """
    given = [0] * len(wanted)
    for index, want in enumerate(wanted):
        given[index] = min(want, least, room)
        room -= given[index]
    while room > 0 and (short := [i for i, want in enumerate(wanted) if given[i] < want]):
        for index in short[:room]:
            given[index] += 1
        room -= min(room, len(short))
    return given


def draw(
    section: Section, width: int, height: int, selected: Mark | None, glyphs: Glyphs
) -> list[Text]:
    """At most `height` lines of at most `width` cells; the selected one is among them. O(lines)."""
    if height <= 0:
        return []
    shown = fit(section.columns, width - len(MARGIN))
    room = height - 1
    first = _first_visible(section.lines, room, selected)
    lines = [_title(section, shown, first, room)]
    if not section.lines and section.empty and room:
        lines.append(_cut(Text(f"{MARGIN}{section.empty}", "dim"), width, glyphs))
    for line in section.lines[first : first + room]:
        chosen = line.mark is not None and line.mark == selected
        lines.append(_line(line, section.columns, shown, chosen, glyphs))
    return [_cut(line, width, glyphs) for line in lines]


def fit(columns: Sequence[Column], width: int) -> dict[Column, int]:
    """The columns that fit, each with its width; those that grow share what is left."""
    kept = list(columns)
    while _total(kept) > width and any(column.drop for column in kept):
        kept.remove(max(kept, key=lambda column: column.drop))
    widths = {column: column.width for column in kept}
    growing = [column for column in kept if column.grow]
    left = width - _total(kept)
    if growing and left > 0:
        for column in growing:
            widths[column] += left // len(growing)
        widths[growing[0]] += left % len(growing)
    return widths


def rule(words: str, width: int, glyphs: Glyphs) -> Text:
    """A line across the screen with words in it."""
    text = Text(f"{glyphs.rule * 2} {words} ", "bold")
    text.append(glyphs.rule * max(0, width - text.cell_len))
    return _cut(text, width, glyphs)


def beside(left: Sequence[Text], right: Sequence[Text], width: int) -> list[Text]:
    """Two blocks side by side, the left one `width` cells wide."""
    lines = []
    for index in range(max(len(left), len(right))):
        line = left[index].copy() if index < len(left) else Text()
        line.append(" " * (width - line.cell_len))
        if index < len(right):
            line.append_text(right[index])
        lines.append(line)
    return lines


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + max(0, len(columns) - 1)


def _first_visible(lines: Sequence[Line], room: int, selected: Mark | None) -> int:
    at = next((i for i, line in enumerate(lines) if line.mark and line.mark == selected), 0)
    return max(0, min(at - room + 1, len(lines) - room))


def _title(section: Section, shown: dict[Column, int], first: int, room: int) -> Text:
    hidden = len(section.lines) - room
    told = f" ({first + 1}-{first + room})" if hidden > 0 and room else ""
    title = Text(f"{section.title}{told}", "bold")
    columns = list(shown)
    # The title may need more than the first column; the other titles keep their places.
    places = [len(MARGIN)]
    for column, _ in pairwise(columns):
        places.append(places[-1] + shown[column] + 1)
    for column, place in zip(columns[1:], places[1:], strict=True):
        words = column.title.rjust(shown[column]) if column.right else column.title
        start = place + len(words) - len(words.lstrip())
        if start > title.cell_len and words.strip():
            title.append(" " * (start - title.cell_len))
            title.append(words.strip(), "dim")
    return title


def _line(
    line: Line, columns: Sequence[Column], shown: dict[Column, int], chosen: bool, glyphs: Glyphs
) -> Text:
    text = Text(CURSOR if chosen else MARGIN, line.style)
    if not line.cells:
        text.append(clean(line.sentence))
        return text
    for column, cell in zip(columns, line.cells, strict=True):
        if column not in shown:
            continue
        text.append_text(_cell(cell, shown[column], column, glyphs))
        text.append(" ")
    text.rstrip()
    if chosen:
        text.stylize("reverse")
    return text


def _cell(cell: Cell, width: int, column: Column, glyphs: Glyphs) -> Text:
    if isinstance(cell, Bar):
        text = _bar(cell, width, glyphs)
    elif isinstance(cell, Text):
        text = cell.copy()
    else:
        text = Text(clean(cell))
    text = _cut(text, width, glyphs)
    room = width - text.cell_len
    return Text(" " * room).append_text(text) if column.right else text.append(" " * room)


def _bar(bar: Bar, width: int, glyphs: Glyphs) -> Text:
    cells = width - len(bar.words) - 1
    if bar.share is None or cells < BAR_CELLS_MIN:
        return Text(bar.words)
    full = max(0, min(cells, round(bar.share * cells)))
    text = Text(glyphs.full * full, bar.style)
    text.append(glyphs.empty * (cells - full), "dim")
    return text.append(f" {bar.words}")


def _cut(text: Text, width: int, glyphs: Glyphs) -> Text:
    if text.cell_len <= width:
        return text
    text = text.copy()
    text.truncate(max(0, width - 1), overflow="crop")
    return text.append(glyphs.ellipsis) if width > 0 else text
