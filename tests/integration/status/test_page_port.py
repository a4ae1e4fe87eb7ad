"""The status page's port by itself: how often it reads, what it refuses, its files. HME-050."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from multidict import CIMultiDictProxy

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2
from orchestrator_core.core.outcome import Reason, Refusal
from orchestrator_core.errors import RefusalError
from orchestrator_core.status.model import Queue, Server, Status
from orchestrator_core.status.page import EXPLAINING_MAX, FILES, HEADERS, StatusPage
from orchestrator_core.telemetry.http import HttpPort
from tests.integration.status.page_calls import get


class Clock:
    """Seconds that pass when told."""

    now_s = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


class Scripted:
    """Counts reads, and answers explanations when told."""

    def __init__(self) -> None:
        self.reads = 0
        self.asked = 0
        self.answer = asyncio.Event()
        self.arrived = asyncio.Condition()
        self.refusal: Refusal | None = None

    async def read(self) -> Status:
        """An empty state that tells how often it was read."""
        self.reads += 1
        await asyncio.sleep(0)
        server, queue = Server("1", draining=False, trouble=""), Queue(self.reads, 0, 1, "reject")
        return Status(0, server, queue, (), (), 0, (), 0, (), 0, 0, 0, 0, ())

    async def explain(self, job_id: str) -> orchestrator_service_pb2.ExplainJobResponse:
        """Waits for the word."""
        if self.refusal is not None:
            raise RefusalError(self.refusal)
        async with self.arrived:
            self.asked += 1
            self.arrived.notify_all()
        await self.answer.wait()
        return orchestrator_service_pb2.ExplainJobResponse(job=job_pb2.Job(job_id=job_id))


Fetch = Callable[..., Awaitable[tuple[int, str, "CIMultiDictProxy[str]"]]]


@asynccontextmanager
async def page(scripted: Scripted, clock: Callable[[], float]) -> AsyncIterator[Fetch]:
    """The routes on a port; yields a way to fetch a path."""
    port = HttpPort()
    routes = StatusPage(scripted.read, scripted.explain, clock).routes()
    number = await port.start("127.0.0.1:0", routes)
    try:
        yield lambda path, **headers: get(f"http://127.0.0.1:{number}{path}", **headers)
    finally:
        await port.stop()


async def test_the_state_is_read_once_a_second_for_all_viewers() -> None:
    """Twenty who ask together cost one read, and so do twenty a moment later."""
    scripted, clock = Scripted(), Clock()

    async with page(scripted, clock) as fetch:
        for second, expected in ((10.0, 1), (10.9, 1), (11.0, 2)):
            clock.now_s = second
            answers = await asyncio.gather(*(fetch("/status/now.json") for _ in range(20)))
            assert {json.loads(text)["queue"]["interactive"] for _, text, _ in answers} == {
                expected
            }

    assert scripted.reads == 2


async def test_explanations_are_few_at_a_time() -> None:
    """One too many is told to come back, and is served once there is room again."""
    scripted = Scripted()

    async with page(scripted, Clock()) as fetch, asyncio.TaskGroup() as group:
        asked = [
            group.create_task(fetch(f"/status/job.json?id=j{i}")) for i in range(EXPLAINING_MAX)
        ]
        async with scripted.arrived:
            await scripted.arrived.wait_for(lambda: scripted.asked == EXPLAINING_MAX)
        status, text, _ = await fetch("/status/job.json?id=more")
        scripted.answer.set()
        answers = [await task for task in asked]
        again, _, _ = await fetch("/status/job.json?id=more")

    assert (status, "too many" in text) == (503, True)
    assert [answer[0] for answer in answers] == [200] * EXPLAINING_MAX
    assert again == 200


@pytest.mark.parametrize(
    ("query", "reason", "status"),
    [
        ("", None, 400),
        ("?id=", None, 400),
        ("?id=" + "x" * 300, None, 400),
        ("?id=j", Reason.NOT_FOUND, 404),
        ("?id=j", Reason.STORE_UNAVAILABLE, 503),
    ],
)
async def test_a_problem_is_told_as_json(query: str, reason: Reason | None, status: int) -> None:
    """Nothing else than a sentence, and the headers of every other answer."""
    scripted = Scripted()
    scripted.refusal = None if reason is None else Refusal(reason, "a sentence")

    async with page(scripted, Clock()) as fetch:
        got, text, headers = await fetch(f"/status/job.json{query}")

    assert got == status
    assert list(json.loads(text)) == ["problem"]
    assert {name: headers[name] for name in HEADERS} == HEADERS


async def test_other_sites_cannot_make_it_work() -> None:
    """Their requests in the background are refused; a link to the page is just a visit."""
    async with page(Scripted(), Clock()) as fetch:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
            assert (await fetch("/status/now.json", **{"Sec-Fetch-Site": site}))[0] == status
        assert (await fetch("/status/job.json?id=j", **{"Sec-Fetch-Site": "cross-site"}))[0] == 403
        assert (await fetch("/", **{"Sec-Fetch-Site": "cross-site"}))[0] == 200


async def test_files_have_their_types_and_are_not_sent_twice() -> None:
    """Scripts and styles are what browsers insist on; an unchanged file is 304."""
    types = {
        "html": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "svg": "image/svg+xml",
    }
    async with page(Scripted(), Clock()) as fetch:
        for name in FILES:
            path = "/" if name == "index.html" else f"/status/{name}"
            status, text, headers = await fetch(path)
            again, nothing, _ = await fetch(path, **{"If-None-Match": headers["ETag"]})

            assert (status, again, nothing) == (200, 304, "")
            assert headers["Content-Type"].split(";")[0] == types[name.rpartition(".")[2]]
            assert headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]
            assert text
