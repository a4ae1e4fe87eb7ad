# SPDX-License-Identifier: Apache-2.0
"""What the progress line says. Pure: events and times in, a line out."""

from llamaorch_client.events import End, Event, Queued, Resumed, Started, Tokens
from llamaorch_client.model import RATE_TIME_MIN_MS, Receipt


class Progress:
    """State, queue position, ETA, pool, tokens and rate of one job."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._state = "accepted"
        self._where = ""
        self._tokens = self._first_tokens = 0
        self._first_ms: int | None = None
        self._now_ms = 0

    def accepted(self, receipt: Receipt) -> None:
        """Takes the receipt."""
        self._where = f"position {receipt.queue_position}{_eta(receipt.predicted_start_ms)}"

    def update(self, event: Event, now_ms: int) -> None:
        """Takes an event; `now_ms` is monotonic."""
        self._now_ms = now_ms
        match event:
            case Queued():
                self._state = "queued"
                self._where = f"position {event.queue_position}{_eta(event.predicted_start_ms)}"
            case Started():
                self._state = "running"
                self._where = event.pool_id
            case Resumed():
                self._where = f"{event.pool_id} (attempt {event.attempt})"
            case Tokens():
                self._count(event, now_ms)
            case End():
                self._state = event.state.value.lower()
            case _:
                pass

    def line(self) -> str:
        """Returns the line."""
        parts = [self._job_id, self._state, self._where]
        if self._tokens:
            parts.append(f"{self._tokens} tokens")
        rate = self._tokens_per_s()
        if rate is not None:
            parts.append(f"{rate:.1f} tok/s")
        return "  ".join(part for part in parts if part)

    def _count(self, event: Tokens, now_ms: int) -> None:
        self._state = "running"
        count = len(event.token_ids) or len(event.pieces)
        if self._first_ms is None:
            self._first_ms, self._first_tokens = now_ms, count
        self._tokens += count

    def _tokens_per_s(self) -> float | None:
        """Tokens after the first batch over the time since it came."""
        elapsed_ms = self._now_ms - self._first_ms if self._first_ms is not None else 0
        if elapsed_ms < RATE_TIME_MIN_MS:
            return None
        return (self._tokens - self._first_tokens) * 1000 / elapsed_ms


def _eta(predicted_start_ms: int | None) -> str:
    return "" if predicted_start_ms is None else f"  starts in {predicted_start_ms / 1000:.1f} s"
