"""Text that is brought back for readers who lack it. LO-301."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator_core.core.outcome import Reason
from orchestrator_core.errors import RefusalError
from orchestrator_core.hosts.registry import Hosts
from orchestrator_core.relay.relay import Relay, RelayLimits
from orchestrator_core.servicers.late import bring_back
from tests.unit.orchestrator_core.relay.test_log import frames


async def test_nothing_is_brought_back_of_a_job_that_is_not_kept() -> None:
    """It may go while a reader waits for its turn; nothing of it is kept anew then."""
    relay = Relay(RelayLimits(job_bytes=512))
    config = SimpleNamespace(reattach_grace_ms=0)
    runtime = SimpleNamespace(relay=relay, hosts=Hosts(), core=SimpleNamespace(config=config))
    log = relay.log("a")
    log.begin_attempt(1)
    for frame in frames([[f"{number:03d} "] for number in range(60)]):
        relay.append_text("a", frame)
    job = SimpleNamespace(
        job_id="a", live=False, attempt=SimpleNamespace(number=1, host_id="h", key=("a", 1))
    )
    reader = log.open(None, late=True)
    assert reader.lacks
    relay.forget("a")

    with pytest.raises(RefusalError) as caught:
        await bring_back(cast("Any", runtime), cast("Any", job), log, reader)

    assert caught.value.refusal.reason is Reason.NOT_FOUND
    assert not relay._logs
