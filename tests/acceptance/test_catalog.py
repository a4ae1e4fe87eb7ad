"""The catalog over real processes: it is still there when orchestratord was killed. ORCH-3031."""

import asyncio
from pathlib import Path

import pytest

from faults.chaos.fleet import MOCK_MODEL
from llamaorch_client import CatalogError, CatalogModel, ModelState
from tests.acceptance.mock_fleet import DRAINED, WAIT_S, Follower, fleet_of, pool_until


@pytest.mark.timeout(150)
async def test_a_killed_orchestrator_forgets_nothing_of_its_catalog(tmp_path: Path) -> None:
    """What was answered is durable: changes, revisions, retirement; and no stream is dropped.

    HME-031: streams go on through every change, and the next job meets it.
    """
    async with fleet_of(tmp_path, hosts=1) as (fleet, client):
        catalog = client.catalog
        await catalog.register(CatalogModel(model_id=MOCK_MODEL, aliases=("chat",)))
        followers = [Follower(client) for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            for follower in followers:
                group.create_task(follower.run())
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*(follower.began.wait() for follower in followers))
            changed = CatalogModel(model_id=MOCK_MODEL, expected_tokens=50)
            await catalog.update(changed, ["expected_tokens"])
            retired = await catalog.retire(MOCK_MODEL, grace_s=0, replaced_by="next")
            await fleet.orchestrator.kill()
            await fleet.orchestrator.start()
        found = await catalog.get("chat")
        closed = await pool_until(client, DRAINED, lambda p: p.connected and p.state == "UNREADY")
        with pytest.raises(CatalogError) as refused:
            await client.enqueue(model_id="chat", prompt="late")
        again = await catalog.activate(MOCK_MODEL, revision=found.revision)
        await pool_until(client, DRAINED, lambda pool: pool.state == "READY")
        receipt = await client.enqueue(model_id="chat", prompt="again")

    # Both ran with the same seed, and the client has proved each byte by the digest at the end.
    assert len({follower.text for follower in followers}) == 1
    assert all(len(set(follower.pools)) == 1 for follower in followers)
    assert (found.state, found.revision, found.expected_tokens) == (ModelState.RETIRED, 3, 50)
    assert (found.retired_at, found.closed) == (retired.retired_at, True)
    assert "is retired" in closed.state_reason
    assert (refused.value.reason, refused.value.replaced_by) == ("MODEL_RETIRED", "next")
    assert again.revision == 4
    assert receipt.from_catalog is not None
    assert receipt.from_catalog.filled == {"expected_tokens": "50"}
