# SPDX-License-Identifier: Apache-2.0
"""Says why a job waits where no pool of its model is ready, which no position and no ETA tells."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli.output import Output
from llamaorch_client.errors import LlamaOrchError
from llamaorch_client.events import Event, Queued
from llamaorch_client.model_fleet import Pool

# A pool that is about to be ready is no news; one that gave up is, and stays so.
LOOK_AFTER_S = 1.0
LOOK_EVERY_S = 5.0
POOLS_SHOWN = 3


def none_ready(model_id: str, pools: Sequence[Pool]) -> str:
    """Why no pool of the model takes a job now; empty when one does, or nobody has the model."""
    mine = [pool for pool in pools if pool.model_id == model_id]
    if not mine or any(pool.state == "READY" for pool in mine):
        return ""
    told = [_sentence(pool) for pool in mine[:POOLS_SHOWN]]
    more = [f"{len(mine) - POOLS_SHOWN} more"] if len(mine) > POOLS_SHOWN else []
    return f"no pool for {model_id} is ready: {'; '.join([*told, *more])}"


def _sentence(pool: Pool) -> str:
    reason = " ".join(pool.state_reason.split())
    return f"{pool.pool_id} is {pool.state}{reason and f': {reason}'}"


class Waiting:
    """Looks at the pools while a job waits, and tells each new reason once."""

    def __init__(self, client: AsyncClient, model_id: str, out: Output) -> None:
        self._client = client
        self._model_id = model_id
        self._out = out
        self._told = ""
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncGenerator[None, None]:
        """Looks at the pools from now on, until the job has begun or the scope ends."""
        self._task = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def update(self, event: Event) -> None:
        """Takes an event of the job: all but `queued` say that it waits no longer."""
        if self._task is not None and not isinstance(event, Queued):
            self._task.cancel()

    async def _look(self) -> None:
        await asyncio.sleep(LOOK_AFTER_S)
        while True:
            # A server that cannot say it now is asked again.
            with contextlib.suppress(LlamaOrchError):
                self._tell(none_ready(self._model_id, await self._client.pools()))
            await asyncio.sleep(LOOK_EVERY_S)

    def _tell(self, sentence: str) -> None:
        if not sentence or sentence == self._told:
            return
        self._told = sentence
        if self._out.as_json:
            self._out.record({"event": "waiting", "reason": sentence})
        else:
            self._out.say(sentence, "yellow")
