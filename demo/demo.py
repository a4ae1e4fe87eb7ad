"""What llama-orch does, in one run: `make demo`. Exit 0 only if every step happened."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from demo.services import PoolOptions, ServiceError, Stack, StackOptions
from llamaorch_client import (
    AsyncClient,
    End,
    Explanation,
    FinishReason,
    JobState,
    Metrics,
    Priority,
    Queued,
    Receipt,
    Sampling,
    Started,
    Tokens,
)

LINE_CHARS = 72
# The rates are first guesses, as an operator would write them down; jobs then show the true ones.
POOLS = (
    PoolOptions("pair", slots=2, tokens_per_s=100.0, first_token_ms=50),
    PoolOptions("single", slots=1, tokens_per_s=100.0, first_token_ms=50),
)
CANCEL_AFTER_TOKENS = 60
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red")


class DemoError(Exception):
    """A step of the demo did not happen."""


@dataclass(slots=True)
class Track:
    """One job as the terminal shows it: a label, a colour, and text that is not yet a line."""

    label: str
    colour: str
    priority: Priority
    max_tokens: int
    receipt: Receipt | None = None
    started: Started | None = None
    tokens: int = 0
    pending: str = ""
    end: End | None = None
    running: asyncio.Event = field(default_factory=asyncio.Event)


class Demo:
    """Runs the steps against one stack and remembers what was seen."""

    def __init__(self, console: Console, client: AsyncClient) -> None:
        self._console = console
        self._client = client

    async def run(self) -> None:
        """All steps. Raises `DemoError` naming the first that failed."""
        self._title("1. Jobs of both classes, three slots: some run, some wait")
        tracks = [
            Track("interactive-1", COLOURS[0], Priority.INTERACTIVE, 48),
            Track("interactive-2", COLOURS[1], Priority.INTERACTIVE, 48),
            Track("batch-1", COLOURS[2], Priority.BATCH, 64),
            Track("batch-2", COLOURS[3], Priority.BATCH, 64),
            Track("interactive-3", COLOURS[4], Priority.INTERACTIVE, 48),
        ]
        for track in tracks:
            await self._enqueue(track)
        async with asyncio.TaskGroup() as group:
            for track in tracks:
                group.create_task(self._follow(track))
        for track in tracks:
            self._expect(track.end is not None, f"{track.label} did not end")
            self._expect(track.tokens > 0, f"{track.label} streamed no token")
            finished = track.end is not None and track.end.state is JobState.FINISHED
            self._expect(finished, f"{track.label} did not finish")

        self._title("2. Cancel a job while it runs")
        await self._cancel_one()

        self._title("3. Why did that job run there?")
        await self._explain(tracks[0])
        await self._explain(tracks[-1])

    async def _enqueue(self, track: Track) -> None:
        receipt = track.receipt = await self._client.enqueue(
            model_id="tiny",
            prompt="Once upon a time",
            priority=track.priority,
            sampling=Sampling(max_tokens=track.max_tokens, temperature=0.8),
        )
        start, end = _seconds(receipt.predicted_start_ms), _seconds(receipt.predicted_end_ms)
        self._say(
            track,
            f"accepted at position {receipt.queue_position}, predicted to start in {start} "
            f"and to end in {end}",
        )

    async def _follow(self, track: Track, on_token: Callable[[], None] | None = None) -> None:
        assert track.receipt is not None
        async for event in self._client.stream(track.receipt.job_id):
            match event:
                case Queued():
                    start = _seconds(event.predicted_start_ms)
                    self._say(track, f"queued, position {event.queue_position}, starts in {start}")
                case Started():
                    self._started(track, event)
                case Tokens():
                    self._text(track, event)
                    if on_token is not None:
                        on_token()
                case End():
                    self._ended(track, event)
                case Metrics():
                    pass
                case _:
                    self._say(track, event.name)

    def _started(self, track: Track, event: Started) -> None:
        track.started = event
        promised = _seconds(event.predicted_start_ms)
        self._say(
            track,
            f"started on pool {event.pool_id} after {_seconds(event.queue_time_ms)} "
            f"(predicted {promised}, position {event.queue_position} at admission)",
        )

    def _text(self, track: Track, event: Tokens) -> None:
        track.tokens += len(event.pieces)
        track.pending += event.text.replace("\n", " ")
        while len(track.pending) >= LINE_CHARS:
            cut = track.pending.rfind(" ", 1, LINE_CHARS) + 1 or LINE_CHARS
            line, track.pending = track.pending[:cut], track.pending[cut:]
            self._print(track, line.strip(), style="")

    def _ended(self, track: Track, event: End) -> None:
        if track.pending:
            self._print(track, track.pending, style="")
            track.pending = ""
        usage = event.usage
        track.end = event
        self._say(
            track,
            f"{event.state.value.lower()} ({event.finish_reason.value.lower()}): "
            f"{usage.tokens_out} tokens, waited {_seconds(usage.queue_time_ms)}, first token "
            f"{_seconds(usage.first_token_ms)}, decode {_seconds(usage.decode_time_ms)}",
        )

    async def _cancel_one(self) -> None:
        track = Track("long-batch", COLOURS[5], Priority.BATCH, 1_900)

        def count() -> None:
            if track.tokens >= CANCEL_AFTER_TOKENS:
                track.running.set()

        await self._enqueue(track)
        following = asyncio.create_task(self._follow(track, count))
        running = asyncio.create_task(track.running.wait())
        await asyncio.wait([following, running], return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        assert track.receipt is not None
        job = await self._client.cancel(track.receipt.job_id)
        await following
        self._expect(job.state is JobState.CANCELLED, f"cancel answered {job.state}")
        cancelled = track.end is not None and track.end.finish_reason is FinishReason.CANCELLED
        self._expect(cancelled, "the cancelled job's stream did not end with CANCELLED")
        self._expect(track.tokens < track.max_tokens, "the job had finished before the cancel")

    async def _explain(self, track: Track) -> None:
        assert track.receipt is not None
        explanation = await self._client.explain(track.receipt.job_id)
        self._expect(bool(explanation.decisions), "there is no decision to explain")
        self._expect(len(explanation.trace_id) == 32, "the job has no trace id")  # noqa: PLR2004
        self._console.print(_decision_table(track, explanation))
        self._console.print(f"trace id: {explanation.trace_id}")

    def _expect(self, happened: bool, problem: str) -> None:
        if not happened:
            raise DemoError(problem)

    def _title(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold")

    def _say(self, track: Track, text: str) -> None:
        self._print(track, f"· {text}", style="dim")

    def _print(self, track: Track, text: str, style: str) -> None:
        line = Text(f"{track.label:>14} ", style=track.colour)
        line.append(text, style=style)
        self._console.print(line, soft_wrap=True)


def _decision_table(track: Track, explanation: Explanation) -> Table:
    decision = explanation.decisions[-1]
    table = Table(title=f"{track.label} → pool {decision.pool_id}, by {decision.decided_by}")
    for heading in ("pool", "predicted end", "first token", "decode", "free slots", "snapshot"):
        table.add_column(heading)
    for candidate in decision.candidates:
        table.add_row(
            candidate.pool_id,
            _seconds(candidate.predicted_end_ms),
            _seconds(candidate.first_token_ms),
            _seconds(candidate.decode_ms),
            str(candidate.slots_free),
            f"v{candidate.snapshot_version}, {candidate.snapshot_age_ms} ms old",
        )
    for exclusion in decision.exclusions:
        lacking = ", ".join(shortfall.reason.value.lower() for shortfall in exclusion.shortfalls)
        table.add_row(exclusion.pool_id, f"no: {lacking}")
    return table


def _seconds(span_ms: int | None) -> str:
    return "?" if span_ms is None else f"{span_ms / 1000:.2f} s"


async def demo(console: Console, directory: Path) -> None:
    """Starts both services, runs the demo, stops them. Raises `DemoError` or `ServiceError`."""
    console.print("llama-orch demo", style="bold")
    console.print(
        "Starting orchestratord and pool-managerd with the embedded llama.cpp engine. The model is "
        "generated on the spot with random weights, so what it says is random words.",
        soft_wrap=True,
    )
    stack = Stack(StackOptions(directory, pools=POOLS, slow_model=True))
    try:
        await stack.start()
        console.print(
            f"Ready: orchestratord on {stack.address} knows both pools; pool pair has 2 slots, "
            "pool single has 1.",
            soft_wrap=True,
        )
        async with AsyncClient(stack.address) as client:
            await Demo(console, client).run()
    finally:
        codes = await stack.stop()
    if codes != (0, 0):
        raise DemoError(f"the services ended with exit codes {codes}")
    console.print("\nBoth services have shut down. Everything happened as it should.", style="bold")


def main() -> int:
    """Runs the demo in a scratch directory, which is kept when something failed."""
    console = Console(highlight=False)
    directory = Path(tempfile.mkdtemp(prefix="llama-orch-demo-"))
    try:
        asyncio.run(demo(console, directory))
    except KeyboardInterrupt:
        console.print("\nInterrupted; both services have stopped.")
        shutil.rmtree(directory)
        return 130
    except (DemoError, ServiceError) as error:
        console.print(f"\nThe demo failed: {error}\nLogs: {directory}", style="bold red")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
