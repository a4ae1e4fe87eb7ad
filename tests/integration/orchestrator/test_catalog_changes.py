"""How the catalog is changed: who may, what is refused, what is durable. ORCH-3031, HME-031."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from llamaorch.orchestrator.v1 import catalog_service_pb2 as pb
from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb
from tests.integration.orchestrator.calls import (
    WAIT_S,
    all_events,
    details,
    enqueue,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.catalog_calls import (
    activate,
    listed,
    pool,
    refused,
    register,
    retire,
    update,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.stores import SteppedStore


async def test_a_retired_model_takes_no_more_jobs_and_finishes_its_own(
    orchestrator: Orchestrator,
) -> None:
    """The refusal says what to ask for instead; the stream under way is complete."""
    host = await ready_host(orchestrator)
    await register(orchestrator, aliases=["small"])
    first = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "one ")

    retired = await retire(orchestrator, grace_s=600, replaced_by="medium")
    code, reason, message = await refused(enqueue(orchestrator, model_id="small"))
    during = await pool(orchestrator)
    await host.tokens(start.handle, "two")
    await host.finish(start.handle)
    events = await all_events(orchestrator, first.job_id)
    again = await activate(orchestrator)
    later = await enqueue(orchestrator)

    assert (retired.state, retired.closed) == (pb.MODEL_STATE_RETIRED, False)
    assert retired.grace_until.ToMilliseconds() - retired.retired_at.ToMilliseconds() == 600_000
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_RETIRED")
    assert "was retired" in message
    assert "ask for 'medium' instead" in message
    assert during.state == "READY"
    assert text(events) == "one two"
    assert (again.state, again.HasField("retired_at"), again.revision) == (
        pb.MODEL_STATE_ACTIVE,
        False,
        3,
    )
    assert later.job_id


async def test_after_the_grace_pools_serve_it_no_more(orchestrator: Orchestrator) -> None:
    """What runs goes on to its end, what waits fails, the pool says why, and metrics with it."""
    host = await ready_host(orchestrator, slots_total=1, slots_free=1)
    await register(orchestrator)
    runs = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    waits = await enqueue(orchestrator)

    await retire(orchestrator, grace_s=0)
    over = await all_events(orchestrator, waits.job_id)
    shown = await pool(orchestrator)
    closed = await orchestrator.catalog.GetModel(pb.GetModelRequest(model_id="tiny"))
    await host.tokens(start.handle, "all")
    await host.finish(start.handle)
    events = await all_events(orchestrator, runs.job_id)
    await activate(orchestrator)
    open_again = await pool(orchestrator)

    assert kinds(over) == ["error"]
    assert "was retired" in over[-1].error.message
    assert (shown.state, "is retired" in shown.state_reason) == ("UNREADY", True)
    assert closed.model.closed
    assert (kinds(events)[-1], text(events)) == ("end", "all")
    assert open_again.state == "READY"


async def test_an_update_holds_for_the_next_job_and_drops_no_stream(
    orchestrator: Orchestrator,
) -> None:
    """HME-031: who was accepted before keeps what it was accepted with."""
    host = await ready_host(orchestrator)
    await register(orchestrator, aliases=["small"], ctx_max=512)
    first = await enqueue(orchestrator, model_id="small")
    start = await host.start()
    await host.started(start.handle)
    before = await refused(enqueue(orchestrator, required_ctx=1_024))

    changed = await update(
        orchestrator, ["ctx_max", "aliases"], model_id="tiny", ctx_max=2_048, aliases=["s"]
    )
    after = await enqueue(orchestrator, required_ctx=1_024)
    gone = await refused(enqueue(orchestrator, model_id="small"))
    await host.tokens(start.handle, "whole")
    await host.finish(start.handle)
    events = await all_events(orchestrator, first.job_id)

    assert before[1:] == (
        "INCOMPATIBLE_MODEL",
        "spec.required_ctx must be at most 512, as the catalog says",
    )
    assert (changed.model.revision, list(changed.model.aliases)) == (2, ["s"])
    assert after.from_catalog.revision == 2
    assert gone[1] == "INCOMPATIBLE_MODEL"
    assert text(events) == "whole"


async def test_changes_of_two_operators_do_not_undo_each_other(orchestrator: Orchestrator) -> None:
    """A revision that is not the present one is refused; without one the fields of the mask win."""
    await register(orchestrator, expected_tokens=5)

    await update(orchestrator, ["ctx_max"], model_id="tiny", ctx_max=10, revision=1)
    late = await refused(update(orchestrator, ["ctx_max"], model_id="tiny", ctx_max=20, revision=1))
    merged = await update(orchestrator, ["engines"], model_id="tiny", engines=["mock"])
    whole = await update(orchestrator, model_id="tiny", ctx_max=30)

    assert late[:2] == (grpc.StatusCode.ABORTED, "REVISION_CONFLICT")
    assert "has revision 2, not 1" in late[2]
    assert (merged.model.ctx_max, merged.model.expected_tokens) == (10, 5)
    assert (whole.model.ctx_max, list(whole.model.engines)) == (30, [])
    assert not whole.model.HasField("expected_tokens")


async def test_a_model_with_live_jobs_is_not_deleted(orchestrator: Orchestrator) -> None:
    """Unless it is retired, or by force; its jobs run on."""
    host = await ready_host(orchestrator)
    await register(orchestrator)
    live = await enqueue(orchestrator)
    start = await host.start()
    await host.started(start.handle)
    delete = orchestrator.catalog.DeleteModel

    code, reason, message = await refused(delete(pb.DeleteModelRequest(model_id="tiny")))
    await delete(pb.DeleteModelRequest(model_id="tiny", force=True))
    gone = await refused(orchestrator.catalog.GetModel(pb.GetModelRequest(model_id="tiny")))
    await host.tokens(start.handle, "on")
    await host.finish(start.handle)

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE")
    assert "1 jobs of model 'tiny' have not ended" in message
    assert gone[:2] == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")
    assert text(await all_events(orchestrator, live.job_id)) == "on"


async def test_models_are_listed_page_by_page(orchestrator: Orchestrator) -> None:
    """Sorted by id, and by state where that is asked for."""
    for name in ("c", "a", "d", "b"):
        await register(orchestrator, name)
    await retire(orchestrator, "d")

    first = await listed(orchestrator, page_size=3)
    second = await listed(orchestrator, page_size=3, page_token=first.next_page_token)
    retired = await listed(orchestrator, states=[pb.MODEL_STATE_RETIRED])

    assert [each.model_id for each in first.models] == ["a", "b", "c"]
    assert ([each.model_id for each in second.models], second.next_page_token) == (["d"], "")
    assert [each.model_id for each in retired.models] == ["d"]


async def test_names_are_unique(orchestrator: Orchestrator) -> None:
    """A repeated registration is one; other words, or another's name, are refused."""
    await register(orchestrator, "a", aliases=["x"])

    again = await register(orchestrator, "a", aliases=["x"])
    other = await refused(register(orchestrator, "a", aliases=["y"]))
    taken = await refused(register(orchestrator, "b", aliases=["x"]))
    shadow = await refused(register(orchestrator, "x"))

    assert again.model.revision == 1
    assert other[:2] == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE")
    assert "'x' belongs to model 'a'" in taken[2]
    assert shadow[1] == "DUPLICATE"


async def test_a_change_by_an_alias_is_told_the_id(orchestrator: Orchestrator) -> None:
    """Only an id says for certain what is deleted or retired."""
    await register(orchestrator, "tiny", aliases=["small"])

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await orchestrator.catalog.DeleteModel(pb.DeleteModelRequest(model_id="small"))

    assert details(caught.value)[0].metadata["nearest"] == "tiny"
    assert "it is an alias of 'tiny', which is to be named here" in str(caught.value.details())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_id": ""}, "model.model_id is required"),
        ({"model_id": " x"}, "without spaces"),
        ({"digest": "abc"}, "sha256:"),
        ({"digest": "sha256:" + "AB" * 32}, "lower case"),
        ({"signature": "x" * 86 + "=="}, "needs a digest"),
        ({"aliases": ["a", "a"]}, "twice"),
        ({"aliases": [str(n) for n in range(17)]}, "at most 16"),
        ({"ctx_max": 0}, "model.ctx_max must be from 1"),
        ({"bytes_per_token": 0.0}, "model.bytes_per_token"),
        ({"dimensions": pb.ModelDimensions(layers=1, kv_heads=0)}, "kv_heads must be from 1"),
        (
            {"dimensions": pb.ModelDimensions(layers=1, kv_heads=1, key_type="q3")},
            "key_type must be one of",
        ),
        ({"requirements": job_pb2.Requirements(min_compute_cap="8")}, "model.requirements"),
        ({"labels": {"": "x"}}, "its key"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    orchestrator: Orchestrator, fields: dict[str, object], says: str
) -> None:
    """Each bad field says what to change."""
    code, reason, message = await refused(register(orchestrator, **fields))  # type: ignore[arg-type]

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")
    assert says in message
    assert not (await listed(orchestrator)).models


async def test_bad_requests_change_nothing(orchestrator: Orchestrator) -> None:
    """A mask of what is not stated, a state that is none, a replacement by itself, a long grace."""
    await register(orchestrator, aliases=["small"])
    calls = orchestrator.catalog

    found = [
        await refused(update(orchestrator, ["state"], model_id="tiny")),
        await refused(calls.SetModelState(pb.SetModelStateRequest(model_id="tiny"))),
        await refused(retire(orchestrator, replaced_by="small")),
        await refused(
            calls.SetModelState(
                pb.SetModelStateRequest(
                    model_id="tiny",
                    state=pb.MODEL_STATE_RETIRED,
                    grace=Duration(seconds=31 * 86_400),
                )
            )
        ),
        await refused(listed(orchestrator, page_token="x" * 300)),
    ]
    unknown = [
        await refused(update(orchestrator, model_id="none")),
        await refused(retire(orchestrator, "none")),
        await refused(calls.DeleteModel(pb.DeleteModelRequest(model_id="none"))),
        await refused(calls.VerifyModel(pb.VerifyModelRequest(model_id="none"))),
    ]

    assert {reason for _, reason, _ in found} == {"INVALID_PARAMS"}
    assert {reason for _, reason, _ in unknown} == {"MODEL_UNKNOWN"}
    (kept,) = (await listed(orchestrator)).models
    assert (kept.revision, kept.state) == (1, pb.MODEL_STATE_ACTIVE)


async def test_the_catalog_is_bounded(start_orchestrator: StartOrchestrator) -> None:
    """By `catalog.models_max`."""
    orchestrator = await start_orchestrator(catalog={"models_max": 1})
    await register(orchestrator, "a")

    code, reason, message = await refused(register(orchestrator, "b"))

    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ADMISSION_REJECT")
    assert "catalog.models_max" in message


async def test_a_grace_ends_by_itself(orchestrator: Orchestrator) -> None:
    """Nobody has to ask: the pool closes at the instant that was told."""
    await ready_host(orchestrator)
    await register(orchestrator)

    retired = await retire(orchestrator, grace_s=0.05)
    async with asyncio.timeout(WAIT_S):
        while (await pool(orchestrator)).state != "UNREADY":
            await orchestrator.server.runtime.next_step()
    now_ms = orchestrator.server.runtime.clock.now_ms()

    assert now_ms >= retired.grace_until.ToMilliseconds()


async def test_what_is_told_of_a_model_is_durable(start_orchestrator: StartOrchestrator) -> None:
    """Also where it was changed again while the question waited for an earlier change."""
    store = SteppedStore()
    orchestrator = await start_orchestrator(store)
    runtime = orchestrator.server.runtime
    await register(orchestrator)
    store.stepped = True

    async def asked(call: Callable[[], Awaitable[object]], steps: int) -> asyncio.Future[object]:
        """A change that waits for the journal: the core has taken it."""
        asking = asyncio.ensure_future(call())
        async with asyncio.timeout(WAIT_S):
            while runtime.steps < steps:
                await runtime.next_step()
        return asking

    async with asyncio.timeout(WAIT_S):
        steps = runtime.steps
        calls = [await asked(lambda: register(orchestrator, "first"), steps + 1)]
        await store.waiting.acquire()
        looks = [
            asyncio.ensure_future(
                orchestrator.catalog.GetModel(pb.GetModelRequest(model_id="tiny"))
            ),
            asyncio.ensure_future(listed(orchestrator)),
            asyncio.ensure_future(
                orchestrator.catalog.VerifyModel(pb.VerifyModelRequest(model_id="tiny"))
            ),
        ]
        await orchestrator.jobs.GetCapabilities(jobs_pb.GetCapabilitiesRequest())
        calls.append(await asked(lambda: register(orchestrator, "second"), steps + 2))
        store.go.release()
        await store.waiting.acquire()
        calls.append(
            await asked(lambda: update(orchestrator, model_id="tiny", expected_tokens=7), steps + 3)
        )
        store.go.release()
        await store.waiting.acquire()
        for _ in range(3):
            await orchestrator.jobs.GetCapabilities(jobs_pb.GetCapabilitiesRequest())
        early = [look.done() for look in looks]
        store.go.release()
        await asyncio.gather(*calls)
        told, page, _ = await asyncio.gather(*looks)

    assert early == [False, False, False]
    assert told.model.revision == 2
    assert [each.revision for each in page.models] == [1, 1, 2]


async def test_a_change_is_answered_although_another_one_follows(
    start_orchestrator: StartOrchestrator,
) -> None:
    """What was done is not told as unknown because somebody deleted it in the same commit."""
    store = SteppedStore()
    orchestrator = await start_orchestrator(store)
    runtime = orchestrator.server.runtime
    store.stepped = True

    async with asyncio.timeout(WAIT_S):
        steps = runtime.steps
        asking = asyncio.ensure_future(register(orchestrator))
        await store.waiting.acquire()
        request = pb.DeleteModelRequest(model_id="tiny")
        deleting = asyncio.ensure_future(orchestrator.catalog.DeleteModel(request))
        while runtime.steps < steps + 2:
            await runtime.next_step()
        store.go.release()
        store.go.release()
        registered, _ = await asyncio.gather(asking, deleting)

    assert (registered.model.model_id, registered.model.revision) == ("tiny", 1)
