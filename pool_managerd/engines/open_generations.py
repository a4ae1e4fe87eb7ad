"""How many generations an engine has open, where it does not show which slot each one holds."""

import contextlib
from collections.abc import AsyncGenerator

from pool_managerd.engines.failures import invalid, redacted, secrets_of
from pool_managerd.engines.http_client import EventReader, HttpClient, Progress
from pool_managerd.engines.port import Failed, Failure, GenerationEvent, GenerationRequest
from pool_managerd.engines.stream_lines import Json


class OpenGenerations:
    """The generations that hold a slot: those that run, and those whose cancel is not confirmed."""

    def __init__(self, slots_total: int) -> None:
        if slots_total < 1:
            raise ValueError("an engine has at least one slot")
        self._slots_total = slots_total
        self._open: dict[str, Progress] = {}
        self._closed: set[str] = set()

    @property
    def running(self) -> int:
        """Generations that nobody has closed."""
        return len(self._open) - len(self._closed)

    async def stream(
        self,
        http: HttpClient,
        path: str,
        body: Json,
        request: GenerationRequest,
        reader: EventReader,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Sends a request and streams its events, while it holds a slot.

        A connection that is lost or closed early leaves the slot to `confirm_idle`.
        """
        progress = self._admit(request.request_id)
        if isinstance(progress, Failed):
            yield progress
            return
        secrets = secrets_of(request)
        stream = http.events(path, body, request, reader, progress)
        try:
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    if progress.settled:
                        self.release(request.request_id)
                    yield redacted(event, secrets) if isinstance(event, Failed) else event
        finally:
            if request.request_id in self._open:
                self._closed.add(request.request_id)

    def _admit(self, request_id: str) -> Progress | Failed:
        if request_id in self._open:
            return invalid("a generation with this request id is open")
        if len(self._open) >= self._slots_total:
            return Failed(Failure.ENGINE_ERROR, "all slots of the engine are taken")
        self._open[request_id] = Progress()
        return self._open[request_id]

    def progress_of(self, request_id: str) -> Progress | None:
        """Returns how far a generation got, or None when it holds no slot."""
        return self._open.get(request_id)

    def release(self, request_id: str) -> None:
        """Gives the slot back. Idempotent."""
        self._open.pop(request_id, None)
        self._closed.discard(request_id)
