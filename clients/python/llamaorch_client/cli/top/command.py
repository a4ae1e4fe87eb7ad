# SPDX-License-Identifier: Apache-2.0
"""top: what happens on a server, live on a terminal, or once."""

import argparse
import asyncio
import os
import sys

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli.failure import ExitCode, sentences
from llamaorch_client.cli.output import Output
from llamaorch_client.cli.top import view
from llamaorch_client.cli.top.printing import SIZE_UNKNOWN, console_of, glyphs_of, write_lines
from llamaorch_client.cli.top.state import Act, Pane, Screen
from llamaorch_client.errors import (
    AccessError,
    InvalidParamsError,
    LlamaOrchError,
    UnavailableError,
)
from llamaorch_client.model import JobState

if sys.platform != "win32":
    # Keys one by one, signals of the window: another system would need its own.
    from llamaorch_client.cli.top.terminal import Terminal

# Of each list; a screen has no room for more.
ROWS = 50
RETRY_S = 1.0
# After so many intervals without an answer what is shown counts as old.
LOOKS_MISSED = 5
# Keys and answers that come together are one frame.
FRAME_S = 0.04
# Of what COLUMNS says; no terminal is wider.
COLUMNS_DIGITS_MAX = 5
# In a pipe all is written, whatever its height.
LINES_MAX = 8 * ROWS


async def top(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Shows pools, queue, running jobs, decisions and ends until `q`; once for a pipe or JSON."""
    live = sys.platform != "win32" and sys.stdout.isatty()
    if out.as_json or arguments.once or not live:
        return await _once(arguments, out, client)
    shown = _Live(arguments, client)
    return await shown.run()


async def _once(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    pools = await client.pools(correlation_id=arguments.correlation_id)
    overview = await client.overview(ROWS, correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record({"pools": pools, "overview": overview})
        return ExitCode.FINISHED
    screen = Screen(client.target, pools, overview)
    width = os.environ.get("COLUMNS", "")
    told = width.isascii() and width.isdigit() and len(width) < COLUMNS_DIGITS_MAX
    columns = (int(width) if told else 0) or SIZE_UNKNOWN.columns
    lines = view.frame(screen, columns, LINES_MAX, glyphs_of(sys.stdout))
    while len(lines) > 1 and not lines[-2].plain.strip():
        del lines[-2]
    write_lines(lines[:-1], console_of(sys.stdout), columns)
    return ExitCode.FINISHED


class _Live:
    """The program while it has the terminal: two readers of the server, one painter."""

    def __init__(self, arguments: argparse.Namespace, client: AsyncClient) -> None:
        self._interval_s: float = arguments.interval_s
        self._correlation_id: str | None = arguments.correlation_id
        self._client = client
        self._screen = Screen(client.target)
        self._changed = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking: asyncio.Task[None] | None = None

    async def run(self) -> ExitCode:
        """Runs until `q`. Raises `LlamaOrchError` for what trying again cannot change."""
        with Terminal(self._press, self._changed.set) as terminal:
            tasks = [
                asyncio.create_task(self._watch_pools()),
                asyncio.create_task(self._look()),
                asyncio.create_task(self._paint(terminal)),
            ]
            try:
                await asyncio.wait([self._over, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                left = [*tasks, *([self._asking] if self._asking is not None else [])]
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)
        return ExitCode.FINISHED

    def _press(self, key: str) -> None:
        match self._screen.press(key):
            case Act.QUIT:
                if not self._over.done():
                    self._over.set_result(None)
            case Act.EXPLAIN if self._screen.pane is not None:
                if self._asking is not None:
                    self._asking.cancel()
                self._asking = asyncio.create_task(self._explain(self._screen.pane))
            case _:
                pass
        self._changed.set()

    async def _paint(self, terminal: Terminal) -> None:
        while True:
            self._changed.clear()
            size = terminal.size
            lines = view.frame(self._screen, size.columns, size.lines, terminal.glyphs)
            terminal.paint(lines, size)
            await asyncio.sleep(FRAME_S)
            await self._changed.wait()

    async def _watch_pools(self) -> None:
        while True:
            try:
                async for pools in self._client.watch_pools(correlation_id=self._correlation_id):
                    self._screen.show_pools(pools)
                    self._changed.set()
            except LlamaOrchError as error:
                self._failed("pools", error)
            await asyncio.sleep(RETRY_S)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            silence = loop.call_later(max(RETRY_S, LOOKS_MISSED * self._interval_s), self._silent)
            try:
                overview = await self._client.overview(ROWS, correlation_id=self._correlation_id)
            except LlamaOrchError as error:
                self._failed("overview", error)
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                silence.cancel()
            self._screen.show(overview)
            self._changed.set()
            await asyncio.sleep(self._interval_s)

    async def _explain(self, pane: Pane) -> None:
        """Answers once; again and again while the job waits, or the server does not answer."""
        while self._screen.pane is pane:
            try:
                told = await self._client.explain(pane.job_id, correlation_id=self._correlation_id)
                pane.explanation, pane.problem = told, ""
                passing = told.job.state is JobState.QUEUED
            except LlamaOrchError as error:
                pane.problem = sentences(error, self._client.target)[0]
                passing = isinstance(error, UnavailableError)
            self._changed.set()
            if not passing:
                return
            await asyncio.sleep(max(RETRY_S, self._interval_s))

    def _silent(self) -> None:
        """The server has not refused, and says nothing: what is shown is no news any more."""
        overview = self._screen.overview
        at = None if overview is None else overview.observed_at
        since = "" if at is None else f": shown is {at.astimezone():%H:%M:%S}"
        self._screen.problems["overview"] = f"{self._client.target} does not answer{since}"
        self._changed.set()

    def _failed(self, what: str, error: LlamaOrchError) -> None:
        """Tells what is wrong, and goes on trying where that may help."""
        if isinstance(error, AccessError | InvalidParamsError) or error.code == "UNIMPLEMENTED":
            raise error
        self._screen.problems[what] = f"trying again: {sentences(error, self._client.target)[0]}"
        self._changed.set()
