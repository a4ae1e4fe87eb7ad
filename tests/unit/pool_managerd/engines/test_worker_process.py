"""A child process that does not do as it is told."""

import asyncio
import os

import pytest

from pool_managerd.engines import worker_process
from pool_managerd.engines.worker_process import StuckProcessError, WorkerProcess

WAIT_S = 10.0


async def test_the_wait_for_a_process_that_no_signal_ends_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver that hangs keeps its process: who stops it is told, and goes on."""
    monkeypatch.setattr(worker_process, "_EXIT_GRACE_S", 0.01)
    monkeypatch.setattr(worker_process, "_KILLED_S", 0.01)
    worker = await WorkerProcess.spawn(("-c", "import time; time.sleep(60)"), env=dict(os.environ))
    kill = worker.kill
    monkeypatch.setattr(worker, "kill", lambda: None)

    async with asyncio.timeout(WAIT_S):
        with pytest.raises(StuckProcessError, match=rf"process {worker.pid} has not ended"):
            await worker.stop()
    # Its end is noticed when the machine finds time for it.
    monkeypatch.setattr(worker_process, "_KILLED_S", WAIT_S)
    kill()
    await worker.stop()

    assert worker.ended
