"""The status page in a real Chromium: what is seen, and what keys and readers find. HME-050."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.pool.v1 import snapshot_pb2
from llamaorch_client import AsyncClient, Priority, Sampling
from tests.integration.orchestrator.calls import all_events, enqueue
from tests.integration.orchestrator.conftest import StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot
from tests.integration.status import chromium
from tests.integration.status.simulated_fleet import simulated_fleet
from tests.integration.status.watching import QUIET, Open, Scheme, texts, violations
from tests.nvml_stub.stub import NO_COMPILER, compiler

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [
    pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing() or "it is there"),
    pytest.mark.usefixtures("axe"),
    pytest.mark.timeout(180),
]
WINDOWS: tuple[tuple[Scheme, tuple[int, int]], ...] = (
    ("light", (360, 800)),
    ("dark", (1600, 1000)),
)
WIDTH = "() => [document.documentElement.scrollWidth, innerWidth]"

# What runs as a script would say so here.
EVIL = "<img src=x onerror=\"document.title='owned'\">"


async def give(client: AsyncClient, priority: Priority, tokens: int = 4_000) -> str:
    """One job; at the pools' pace the longest take minutes, so they are cancelled when seen."""
    receipt = await client.enqueue(
        model_id="qwen3-8b",
        prompt="Once upon a time",
        priority=priority,
        sampling=Sampling(max_tokens=tokens),
    )
    return receipt.job_id


async def test_a_person_sees_a_fleet_at_work(tmp_path: Path, visit: Open, axe: str) -> None:
    """Jobs appear, run, produce, end; pools and GPUs are shown; keys open a decision."""
    if compiler() is None:
        pytest.skip(NO_COMPILER)
    async with simulated_fleet(tmp_path) as fleet, AsyncClient(fleet.address) as client:
        watched = await visit(fleet.url)
        page = watched.page
        await assert_idle_fleet_shown(page)
        long = [await give(client, Priority.INTERACTIVE) for _ in range(10)]
        waits = await give(client, Priority.BATCH, 8)
        try:
            await assert_work_shown(page, long, waits)
            assert await violations(page, axe) == []
            await opened_by_keyboard(page, long[0])
            assert await violations(page, axe) == []
            await assert_choice_of_three_shown(page)
            await page.keyboard.press("Escape")
            await page.locator("dialog[open]").wait_for(state="hidden")
            assert (await page.evaluate("() => document.activeElement.hash"))[5:] == long[0]
            assert page.url == fleet.url
        finally:
            for job_id in long:
                await client.cancel(job_id)
        outcome = page.locator("#ended tbody tr", has_text=waits[-8:])
        await outcome.wait_for()
        assert "✓ finished" in await outcome.inner_text()
        assert await page.locator("#ended .state.calm").count() == len(long)
        await page.get_by_text("Nothing runs.").wait_for()
        watched.assert_well()


async def assert_idle_fleet_shown(page: "Page") -> None:
    """Four pools and four GPUs as the script has them."""
    await page.get_by_text("Nothing runs.").wait_for()
    ready = "() => document.querySelectorAll('#pools .state.good').length === 4"
    await page.wait_for_function(ready)
    assert await page.locator("#slots-count").inner_text() == "12"
    first, *_, last = await texts(page, "#devices li")
    for words in ("NVIDIA GeForce RTX 3090", "19.4 of 24.0 GiB", "Temperature 66 °C Power 318 W"):
        assert words in first
    assert "318" not in last


async def assert_work_shown(page: "Page", long: list[str], waits: str) -> None:
    """All that run, one that waits, and output that grows."""
    await page.locator("#running tbody tr").nth(9).wait_for()
    await page.locator("#waiting tbody tr").first.wait_for()
    produced = "document.querySelector('#running .told b')?.innerText"
    await page.wait_for_function(f"() => +{produced} > 0")
    first = await page.evaluate(f"() => +{produced}")
    await page.wait_for_function(f"() => +{produced} > {first}")
    running = await texts(page, "#running a.job")
    assert {job_id[-8:] for job_id in long} == {text[-8:] for text in running}
    assert (await texts(page, "#waiting a.job"))[0].endswith(waits[-8:])
    room = "0 interactive, 1 batch; room for 100"
    assert await page.locator("#waiting-note").inner_text() == room


async def assert_choice_of_three_shown(page: "Page") -> None:
    """The picture of the first decision: one winner, two more candidates, one excluded."""
    figure = page.locator("dialog figure")
    assert "★ 3090-" in (await figure.locator(".winner").text_content() or "")
    assert await figure.locator("g.candidate").count() == 3
    assert await figure.locator("g.excluded").count() == 1
    image = figure.get_by_role("img").first
    assert (await image.get_attribute("aria-label") or "").startswith("Predicted end: 3090-")
    assert "model: needs qwen3-8b" in await page.locator("dialog .lacks").inner_text()


async def opened_by_keyboard(page: "Page", job_id: str) -> None:
    """Goes to a job by Tab alone and opens its decision with Enter."""
    wanted = f"#job={job_id}"
    for _ in range(60):
        await page.keyboard.press("Tab")
        if await page.evaluate("() => document.activeElement.hash ?? ''") == wanted:
            break
    # The table is shown anew meanwhile, and the focus stays.
    stamp = await page.locator("#fresh").inner_text()
    await page.wait_for_function(
        "before => document.querySelector('#fresh').innerText !== before", arg=stamp
    )
    assert await page.evaluate("() => document.activeElement.hash ?? ''") == wanted
    await page.keyboard.press("Enter")
    await page.locator("dialog figure svg").first.wait_for()
    assert await page.locator("#explain-h").inner_text() == f"Job {job_id}"
    inside = "() => document.querySelector('dialog').contains(document.activeElement)"
    assert await page.evaluate(inside)


async def test_it_fits_and_reads_narrow_and_wide_light_and_dark(
    start_orchestrator: StartOrchestrator, visit: Open, axe: str
) -> None:
    """No sideways scrolling of the page, and nothing that axe-core objects to, dialog included."""
    orchestrator = await start_orchestrator(**QUIET)
    host = orchestrator.host()
    await host.register(
        snapshot("a" * 60, slots_total=1, slots_free=1, devices=[_gpu("GPU-1", 3 << 30)]),
        snapshot("b", slots_total=20, slots_free=20, model_id="m" * 80),
        snapshot(
            "c",
            state=snapshot_pb2.POOL_STATE_UNREADY,
            state_reason=snapshot_pb2.POOL_STATE_REASON_DEVICE_ERROR,
            state_detail="the GPU is lost: it fell off the bus or was removed " * 3,
            devices=[snapshot_pb2.Device(device_id="GPU-2", health_detail="it is gone " * 20)],
        ),
    )
    placed = await enqueue(orchestrator, session_id="s" * 100)
    for _ in range(3):
        await enqueue(orchestrator, job_id="long-name-of-a-client." + "x" * 90)
    waits = await enqueue(orchestrator)
    url = f"http://127.0.0.1:{orchestrator.server.metrics_port}/"

    for scheme, size in WINDOWS:
        watched = await visit(url, scheme, size)
        page = watched.page
        await page.locator("#waiting tbody tr").first.wait_for()
        await assert_fits(page, axe)
        for job_id in (placed.job_id, waits.job_id):
            await page.evaluate("hash => { location.hash = hash }", f"job={job_id}")
            await page.locator("dialog[open] :is(figure, h3)").first.wait_for()
            await assert_fits(page, axe)
            await page.get_by_role("button", name="Close").click()
        watched.assert_well()
        await page.close()


async def assert_fits(page: "Page", axe: str) -> None:
    """Neither wider than the window, nor anything that axe-core objects to."""
    wide, window = await page.evaluate(WIDTH)
    assert wide == window
    assert await violations(page, axe) == []


def _gpu(device_id: str, used: int | None) -> snapshot_pb2.Device:
    return snapshot_pb2.Device(
        device_id=device_id,
        kind=snapshot_pb2.DEVICE_KIND_GPU,
        name="NVIDIA H200",
        memory_total_bytes=4 << 30,
        memory_used_bytes=used,
        utilization_ratio=0.0,
    )


async def test_names_are_only_text(start_orchestrator: StartOrchestrator, visit: Open) -> None:
    """Whatever clients and hosts call things is shown letter by letter, in every place."""
    orchestrator = await start_orchestrator(**QUIET)
    host = orchestrator.host()
    await host.register(
        snapshot(
            EVIL,
            model_id=EVIL,
            engine=EVIL,
            slots_total=1,
            slots_free=1,
            devices=[snapshot_pb2.Device(device_id=EVIL, name=EVIL, health_detail=EVIL)],
        ),
        snapshot("other", model_id=f"{EVIL}2", state_detail=EVIL),
    )
    done = await enqueue(orchestrator, model_id=EVIL, session_id=EVIL)
    start = await host.start()
    await host.started(start.handle)
    await host.finish(start.handle, job_pb2.FINISH_REASON_EOS)
    await all_events(orchestrator, done.job_id)
    for _ in range(2):
        await enqueue(orchestrator, model_id=EVIL, session_id=EVIL)

    watched = await visit(f"http://127.0.0.1:{orchestrator.server.metrics_port}/")
    page = watched.page
    await page.locator("#waiting tbody tr").first.wait_for()
    for section in ("running", "waiting", "ended", "pools", "devices"):
        assert EVIL in await page.locator(f"#{section}").inner_text(), section
    for job_id in (done.job_id, f"{EVIL}&id=x#y"):
        await page.evaluate("id => { location.hash = `job=${encodeURIComponent(id)}` }", job_id)
        found = page.locator("#explained", has_text=re.compile("is known|Decided"))
        await found.wait_for()
        assert await page.locator("#explain-h").inner_text() == f"Job {job_id}"
        await page.keyboard.press("Escape")

    assert await page.title() == "llama-orch"
    assert await page.locator("img").count() == 0
    # The unknown job's 404 is the one thing that the browser itself notes.
    assert all("404" in line for line in watched.console)
    assert watched.foreign == []


async def test_what_is_not_reported_is_shown_as_absent(
    start_orchestrator: StartOrchestrator, visit: Open
) -> None:
    """A dash and a dashed bar, for the eye; a word for the ear; never a 0."""
    orchestrator = await start_orchestrator(**QUIET)
    host = orchestrator.host()
    await host.register(
        snapshot(devices=[_gpu("GPU-1", 0), snapshot_pb2.Device(device_id="GPU-2", index=1)])
    )

    page = (await visit(f"http://127.0.0.1:{orchestrator.server.metrics_port}/")).page
    await page.locator("#devices li").nth(1).wait_for()

    zero, absent = await texts(page, "#devices li")
    assert "0.0 of 4.0 GiB" in zero
    assert "0 %" in zero
    assert "0" not in absent.removeprefix("GPU-2").replace("pool-a", "").replace("host-1", "")
    assert await page.locator("#devices li:nth-child(2) .notes .absent").count() == 2
    assert await page.locator("#devices li:nth-child(2) .bar.unknown").count() == 2
