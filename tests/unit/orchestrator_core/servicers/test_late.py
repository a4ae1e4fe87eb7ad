"""Text that is brought back for readers who lack it. LO-301."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.servicers.late import LATE_MAX, LateReads, bring_back
from tests.unit.orchestrator_core.relay.logs import frames


class Late:
    """A reader of an ended job that lacks text, and all that its stream has."""

    def __init__(self) -> None:
        self.relay = Relay(RelayLimits(job_bytes=512))
        config = SimpleNamespace(reattach_grace_ms=0)
        core = SimpleNamespace(config=config)
        self.runtime: Any = SimpleNamespace(relay=self.relay, hosts=Hosts(), core=core)
        self.log = self.relay.log("a")
        self.log.begin_attempt(1)
        for frame in frames([[f"{number:03d} "] for number in range(60)]):
            self.relay.append_text("a", frame)
        attempt = SimpleNamespace(number=1, host_id="h", key=("a", 1))
        self.job: Any = SimpleNamespace(job_id="a", live=False, attempt=attempt)
        self.reader = self.log.open(None, late=True)
        assert self.reader.lacks


async def test_a_bug_met_while_text_is_brought_back_is_logged_and_told() -> None:
    """Its reader must not wait for ever, nor may the next in turn."""
    late, told = Late(), list[Any]()
    late.runtime.hosts = None
    reads = LateReads(late.runtime)

    with structlog.contextvars.bound_contextvars(correlation_id="c-1"), capture_logs() as lines:
        for _ in range(LATE_MAX + 1):
            reads.begin(late.job, late.log, late.reader, 1_000, told.append)
        async with asyncio.timeout(20):
            await asyncio.gather(*reads.tasks)

    assert [line["event"] for line in lines] == ["internal_error"] * (LATE_MAX + 1)
    assert {refusal.reason for refusal in told} == {Reason.INTERNAL}
    assert [refusal.metadata for refusal in told] == [{"trace_id": "c-1"}] * (LATE_MAX + 1)
    assert not reads.tasks


async def test_nothing_is_brought_back_of_a_job_that_is_not_kept() -> None:
    """It may go while a reader waits for its turn; nothing of it is kept anew then."""
    late = Late()
    late.relay.forget("a")

    with pytest.raises(RefusalError) as caught:
        await bring_back(late.runtime, late.job, late.log, late.reader)

    assert caught.value.refusal.reason is Reason.NOT_FOUND
    assert not late.relay._logs
