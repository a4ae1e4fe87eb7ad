# SPDX-License-Identifier: Apache-2.0
"""A frame of `llorch top`: the state in, exactly as many lines as the terminal has out. Pure."""

from collections.abc import Sequence

from rich.text import Text

from llamaorch_client.cli.top import grid, pane, sections
from llamaorch_client.cli.top.grid import Glyphs, Section
from llamaorch_client.cli.top.state import Mark, Screen

# From here on there are two columns: what is there, and what happened.
TWO_COLUMNS_FROM = 150
KEYS = "q quit  p pause  s sort  arrows select  e explain"
KEYS_IN_PANE = "arrows scroll  esc back  q quit"


def frame(screen: Screen, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Draws a frame of exactly `height` lines, none wider than `width` cells."""
    width, height = max(1, width), max(1, height)
    body = height - 2
    if screen.pane is not None:
        lines = pane.draw(screen.pane, width, body, glyphs)
        keys = KEYS_IN_PANE
    else:
        lines = _body(screen, width, body, glyphs)
        keys = KEYS
    lines = lines[: max(0, body)]
    lines += [Text()] * (body - len(lines))
    whole = [_head(screen, width), *lines, Text(f" {keys}", "dim")]
    return [_within(line, width) for line in whole[:height]]


def _body(screen: Screen, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    now = sections.now_ms_of(screen)
    fleet = (sections.pools(screen), sections.queue(screen), sections.running(screen, now))
    events = (sections.decisions(screen, now, glyphs), sections.ended(screen, now))
    screen.drawn([line.mark for s in (*fleet, *events) for line in s.lines if line.mark])
    if width < TWO_COLUMNS_FROM:
        return _stack((*fleet, *events), width, height, screen.selected, glyphs)
    half = width * 11 // 20
    left = _stack(fleet, half - 2, height, screen.selected, glyphs)
    right = _stack(events, width - half, height, screen.selected, glyphs)
    return grid.beside(left, right, half)


def _stack(
    blocks: Sequence[Section], width: int, height: int, selected: Mark | None, glyphs: Glyphs
) -> list[Text]:
    rooms = grid.allot([block.height for block in blocks], height)
    lines: list[Text] = []
    for block, room in zip(blocks, rooms, strict=True):
        lines += grid.draw(block, width, room, selected, glyphs)
    return lines


def _head(screen: Screen, width: int) -> Text:
    # A sentence about what is wrong names the server itself.
    server = "" if screen.problems else f"{grid.clean(screen.server)}  "
    text = Text(f"llorch top  {server}", "bold")
    if screen.paused:
        text.append("PAUSED  ", "bold yellow")
    if screen.problems:
        text.append(grid.clean(next(iter(screen.problems.values()))), "bold red")
    elif screen.overview is None:
        text.append("connecting")
    elif screen.overview.store_unavailable:
        text.append("the journal does not answer: nothing is accepted", "bold red")
    elif screen.overview.draining:
        text.append("the server shuts down: nothing is accepted or placed", "bold yellow")
    else:
        waiting = sum(queue.waiting for queue in screen.overview.queues)
        text.append(f"{screen.overview.running_total} running, {waiting} waiting", "")
        ready = sum(pool.state == "READY" for pool in screen.pools)
        if ready < len(screen.pools):
            text.append(
                f", {ready} of {len(screen.pools)} pools ready", "yellow" if ready else "red"
            )
    return _within(text, width)


def _within(text: Text, width: int) -> Text:
    if text.cell_len > width:
        text = text.copy()
        text.truncate(width, overflow="crop")
    return text
