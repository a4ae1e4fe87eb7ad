"""What a person who has the status page open sees of changes, absences and pauses. HME-050."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from llamaorch.pool.v1 import dispatch_pb2, snapshot_pb2
from tests.integration.orchestrator.calls import enqueue
from tests.integration.orchestrator.conftest import StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot
from tests.integration.orchestrator.stores import FailingStore
from tests.integration.status import chromium
from tests.integration.status.watching import PATIENCE_MS, QUIET, Open

if TYPE_CHECKING:
    from playwright.async_api import Route

pytestmark = [
    pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing() or "it is there"),
    pytest.mark.usefixtures("axe"),
    pytest.mark.timeout(180),
]


async def test_it_says_when_nobody_answers_and_when_it_is_paused(
    start_orchestrator: StartOrchestrator, visit: Open
) -> None:
    """Old numbers are never passed off as new ones."""
    orchestrator = await start_orchestrator(**QUIET)
    watched = await visit(f"http://127.0.0.1:{orchestrator.server.metrics_port}/")
    page = watched.page
    await page.get_by_text("live,").wait_for()
    asked: list[str] = []

    await page.get_by_role("button", name="Pause").click()
    await page.get_by_text("paused at").wait_for()
    page.on("request", lambda request: asked.append(request.url))
    await asyncio.sleep(1.5)
    assert asked == []
    await page.get_by_role("button", name="Pause").click()
    await page.get_by_text("live,").wait_for()
    await orchestrator.close()

    await page.get_by_role("alert").get_by_text("does not answer").wait_for()
    assert "not connected" in await page.locator("#fresh").inner_text()


async def test_an_answer_that_comes_during_a_pause_is_not_shown(
    start_orchestrator: StartOrchestrator, visit: Open
) -> None:
    """Else it would say "live" while it stands still."""
    orchestrator = await start_orchestrator(**QUIET)
    watched = await visit(f"http://127.0.0.1:{orchestrator.server.metrics_port}/")
    page, asked, go_on = watched.page, asyncio.Event(), asyncio.Event()
    await page.get_by_text("live,").wait_for()

    async def late(route: "Route") -> None:
        asked.set()
        await go_on.wait()
        await route.continue_()

    await page.route("**/status/now.json", late)
    await asyncio.wait_for(asked.wait(), PATIENCE_MS / 1000)
    await page.get_by_role("button", name="Pause").click()
    go_on.set()
    # A later question is answered later.
    await page.evaluate("async () => (await fetch('/status/now.json')).json()")

    assert "paused at" in await page.locator("#fresh").inner_text()


async def test_a_job_that_is_not_known_is_told_each_time_one_asks(
    start_orchestrator: StartOrchestrator, visit: Open
) -> None:
    """The same answer to a second question is an answer too."""
    orchestrator = await start_orchestrator(**QUIET)
    watched = await visit(f"http://127.0.0.1:{orchestrator.server.metrics_port}/#job=nobody")
    answer = watched.page.locator("#explained p.empty").filter(has_not_text="again from")

    await answer.wait_for()
    first = await answer.inner_text()
    await watched.page.get_by_role("button", name="Close").click()
    await watched.page.evaluate("() => { location.hash = '#job=nobody' }")
    await answer.wait_for()

    assert "nobody" in first
    assert await answer.inner_text() == first


async def test_a_job_that_waits_again_is_told_anew(
    start_orchestrator: StartOrchestrator, visit: Open
) -> None:
    """Why it waits is no lasting answer, whatever was decided of it before."""
    orchestrator = await start_orchestrator(**QUIET)
    host = orchestrator.host()
    await host.register(snapshot())
    job = await enqueue(orchestrator)
    start = await host.start()
    async with host.reports() as reports:
        unready = snapshot_pb2.POOL_STATE_UNREADY
        await reports.send(snapshot(version=2, state=unready))
        refused = dispatch_pb2.AttemptRefused(
            handle=start.handle, reason=dispatch_pb2.REFUSAL_REASON_NOT_READY
        )
        await host.frame(refused=[refused])
        await orchestrator.server.runtime.next_step()
        url = f"http://127.0.0.1:{orchestrator.server.metrics_port}/#job={job.job_id}"
        page = (await visit(url)).page
        await page.get_by_role("heading", name="It waits because").wait_for()
        await page.get_by_text("No pool that could serve it is ready.").wait_for()
        await page.get_by_text("What would help: mend what the reason says").wait_for()
        await reports.send(snapshot(version=3))

        await page.locator("dialog").get_by_text("Attempt 2 went to pool-a").wait_for()


async def test_outcomes_that_are_withheld_are_not_told_as_none(
    start_orchestrator: StartOrchestrator, visit: Open
) -> None:
    """While the journal does not answer."""
    store = FailingStore()
    orchestrator = await start_orchestrator(store, **QUIET)
    host = orchestrator.host()
    await host.register(snapshot())
    page = (await visit(f"http://127.0.0.1:{orchestrator.server.metrics_port}/")).page
    await page.get_by_text("No job has ended yet.").wait_for()
    await enqueue(orchestrator)
    start = await host.start()
    store.broken = True
    await host.started(start.handle)
    await host.finish(start.handle)

    await page.get_by_text("Not told while the journal does not answer.").wait_for()
    store.broken = False


async def test_the_first_pool_is_announced(
    start_orchestrator: StartOrchestrator, visit: Open
) -> None:
    """As after a restart of the server, when hosts come back one by one."""
    orchestrator = await start_orchestrator(**QUIET)
    page = (await visit(f"http://127.0.0.1:{orchestrator.server.metrics_port}/")).page
    await page.get_by_text("No pool is registered").wait_for()
    await page.get_by_text("live,").wait_for()

    await orchestrator.host().register(snapshot())

    await page.locator("#said", has_text="Pool pool-a is ready.").wait_for(state="attached")


async def test_pools_that_change_are_announced(
    start_orchestrator: StartOrchestrator, visit: Open
) -> None:
    """Once each, in the one quiet live region; numbers are not."""
    orchestrator = await start_orchestrator(**QUIET)
    host = orchestrator.host()
    await host.register(snapshot())
    page = (await visit(f"http://127.0.0.1:{orchestrator.server.metrics_port}/")).page
    await page.locator("#pools tbody tr").wait_for()
    assert await page.locator("#said").inner_text() == ""

    async with host.reports() as reports:
        await reports.send(snapshot(version=2, state=snapshot_pb2.POOL_STATE_DRAINING))
        said = page.locator("#said", has_text="Pool pool-a is draining.")
        await said.wait_for(state="attached")

    assert await page.locator("#said").text_content() == "Pool pool-a is draining."
