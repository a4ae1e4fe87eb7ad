"""How a process of ours ended, and what that means for its generations. ORCH-3039."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, replace

from pool_managerd.core.exhaustion import Memory, exhausted
from pool_managerd.core.redaction import diagnoses, masked
from pool_managerd.engines.failures import OUT_OF_MEMORY, secrets_of
from pool_managerd.engines.host_memory import OomKills, oom_kills
from pool_managerd.engines.port import Ended, Failed, Failure, GenerationRequest

LINES_IN_MESSAGES = 3
"""Lines of an engine's log that a sentence quotes at most."""

_NEWS_S = 0.2
_SHELL_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWords:
    """What is known of an ended process.

    Attributes:
        sentence: How it ended, for people.
        status: Exit status, negative for a signal; None when we ended it ourselves.
        lines: The last lines of its log that may be looked at, oldest first.
        before: The kernel's counters from before its start.
        secrets: What no sentence may quote.
    """

    sentence: str
    status: int | None
    lines: tuple[str, ...]
    before: OomKills
    secrets: tuple[str, ...] = ()


def verdict(words: LastWords, now: OomKills) -> Ended:
    """Judges why a process ended, and says it in one sentence.

    A process that says what it lacked is believed. SIGKILL that we did not send, while the kernel's
    out-of-memory killer took somebody, is the host's memory.
    """
    memory = exhausted(words.lines)
    sentence = words.sentence
    if memory is not None:
        sentence = f"{memory.value} memory ran out: {sentence}"
    elif words.status in (-signal.SIGKILL, _SHELL_KILLED):
        if now.cgroup > words.before.cgroup:
            memory = Memory.HOST
            sentence = f"host memory ran out, the kernel ended it: {sentence}"
        elif now.host > words.before.host:
            memory = Memory.HOST
            sentence = f"host memory ran out, the kernel ended somebody meanwhile: {sentence}"
    quoted = " | ".join(masked(line, words.secrets) for line in words.lines[-LINES_IN_MESSAGES:])
    failure = Failure.ENGINE_DIED if memory is None else OUT_OF_MEMORY[memory]
    return Ended(failure, f"{sentence} ({quoted})" if quoted else sentence)


async def judged(words: LastWords) -> Ended:
    """The same with the counters of this moment, read off the event loop."""
    return verdict(words, await asyncio.to_thread(oom_kills))


class OpenRequests:
    """Texts of the generations that are open, which an engine's log may quote. Bounded by slots."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, ...]] = {}

    @contextlib.contextmanager
    def holding(self, request: GenerationRequest) -> Iterator[None]:
        """Around one generation."""
        self._open[request.request_id] = secrets_of(request)
        try:
            yield
        finally:
            self._open.pop(request.request_id, None)

    def texts(self) -> Iterable[str]:
        """All of them."""
        return [text for texts in self._open.values() for text in texts]

    def failures_in(self, lines: tuple[str, ...]) -> tuple[str, ...]:
        """Of lines that were logged while serving, those that may be shown."""
        return diagnoses(lines, self.texts())


async def with_exit_news(event: Failed, wait_exit: Callable[[], Awaitable[Ended]]) -> Failed:
    """Says how the process ended; its connection breaks a moment before its exit is known."""
    try:
        async with asyncio.timeout(_NEWS_S):
            return replace(event, message=(await wait_exit()).message)
    except TimeoutError:
        return event


async def idle_or_gone(
    idle: Coroutine[object, object, None], wait_exit: Callable[[], Coroutine[object, object, Ended]]
) -> None:
    """Waits for the confirmation that an engine is idle, or for its end.

    Raises:
        CancelUnconfirmedError: when `idle` does.
    """
    gone, confirmed = asyncio.create_task(wait_exit()), asyncio.create_task(idle)
    try:
        await asyncio.wait({gone, confirmed}, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            await confirmed
    finally:
        gone.cancel()
        confirmed.cancel()
        await asyncio.gather(gone, confirmed, return_exceptions=True)
