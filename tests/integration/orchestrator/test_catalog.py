"""CatalogService: a client need only name a model. ORCH-3031, ORCH-3037, HME-031."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import aiohttp
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from llamaorch.orchestrator.v1 import catalog_service_pb2 as pb
from llamaorch.orchestrator.v1 import job_pb2, pool_admin_service_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb
from orchestrator_core.config_catalog import CatalogTable
from orchestrator_core.core.records import Record
from orchestrator_core.recorder.recorder import recordings
from orchestrator_core.recorder.replay import replay
from orchestrator_core.store.memory import MemoryStore
from tests.integration.orchestrator.calls import (
    WAIT_S,
    all_events,
    details,
    enqueue,
    job,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot
from tests.unit.orchestrator_core.servicers.test_signatures import public, signed

DIGEST = "sha256:" + "ab" * 32
OTHER_DIGEST = "sha256:" + "cd" * 32


def model(model_id: str = "tiny", **fields: object) -> pb.CatalogModel:
    """A model that says nothing but its id."""
    return pb.CatalogModel(model_id=model_id, **fields)  # type: ignore[arg-type]


async def register(
    orchestrator: Orchestrator, model_id: str = "tiny", **fields: object
) -> pb.RegisterModelResponse:
    """Registers a model."""
    request = pb.RegisterModelRequest(model=model(model_id, **fields))
    return await orchestrator.catalog.RegisterModel(request)


async def retire(
    orchestrator: Orchestrator, model_id: str = "tiny", grace_s: float | None = None, **also: object
) -> pb.CatalogModel:
    """Retires a model."""
    request = pb.SetModelStateRequest(
        model_id=model_id,
        state=pb.MODEL_STATE_RETIRED,
        **also,  # type: ignore[arg-type]
    )
    if grace_s is not None:
        request.grace.FromMilliseconds(round(grace_s * 1000))
    return (await orchestrator.catalog.SetModelState(request)).model


async def activate(orchestrator: Orchestrator, model_id: str = "tiny") -> pb.CatalogModel:
    """Makes a model active again."""
    request = pb.SetModelStateRequest(model_id=model_id, state=pb.MODEL_STATE_ACTIVE)
    return (await orchestrator.catalog.SetModelState(request)).model


async def update(
    orchestrator: Orchestrator, paths: list[str] | None = None, **fields: object
) -> pb.UpdateModelResponse:
    """Changes a model."""
    mask = None if paths is None else FieldMask(paths=paths)
    request = pb.UpdateModelRequest(model=model(**fields), update_mask=mask)  # type: ignore[arg-type]
    return await orchestrator.catalog.UpdateModel(request)


async def listed(orchestrator: Orchestrator, **fields: object) -> pb.ListModelsResponse:
    """One page of the catalog."""
    return await orchestrator.catalog.ListModels(
        pb.ListModelsRequest(**fields)  # type: ignore[arg-type]
    )


async def pool(orchestrator: Orchestrator, pool_id: str = "pool-a") -> pool_admin_service_pb2.Pool:
    """A pool as operators see it."""
    answer = await orchestrator.pools.ListPools(pool_admin_service_pb2.ListPoolsRequest())
    return next(each for each in answer.pools if each.pool_id == pool_id)


async def refused(call: object) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    info, _ = details(caught.value)
    return caught.value.code(), info.reason, caught.value.details() or ""


async def test_a_client_need_only_name_a_model(orchestrator: Orchestrator) -> None:
    """An alias is enough: what the job leaves unset comes from the catalog, and is shown."""
    host = await ready_host(orchestrator, model_digest=DIGEST)
    kept = await register(
        orchestrator,
        aliases=["small"],
        digest=DIGEST,
        engines=["mock"],
        expected_tokens=7,
        requirements=job_pb2.Requirements(min_vram_bytes=4 << 30),
        dimensions=pb.ModelDimensions(layers=2, kv_heads=4, key_length=8, value_length=8),
    )

    receipt = await enqueue(orchestrator, model_id="small", required_ctx=100)
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "hi")
    await host.finish(start.handle)
    events = await all_events(orchestrator, receipt.job_id)
    shown = await job(orchestrator, receipt.job_id)
    explained = await orchestrator.jobs.ExplainJob(jobs_pb.ExplainJobRequest(job_id=receipt.job_id))

    assert (kept.model.revision, kept.model.state) == (1, pb.MODEL_STATE_ACTIVE)
    assert list(kept.warnings) == ["it has no signature, so nobody vouches for its digest"]
    assert start.model_id == "tiny"
    assert (receipt.from_catalog.alias, receipt.from_catalog.revision) == ("small", 1)
    assert dict(receipt.from_catalog.filled) == {
        "engine": "mock",
        "est_kv_bytes": str(100 * 2 * (4 * 8 + 4 * 8) * 2),
        "expected_tokens": "7",
        "model_digest": DIGEST,
        "requirements.min_vram_bytes": str(4 << 30),
    }
    assert (shown.model_id, shown.engine) == ("tiny", "mock")
    assert shown.from_catalog == explained.job.from_catalog == receipt.from_catalog
    assert (kinds(events)[-1], text(events)) == ("end", "hi")


async def test_a_digest_that_differs_fails_before_admission(orchestrator: Orchestrator) -> None:
    """The pool is named with both digests; one that says none is served, with a warning."""
    await ready_host(orchestrator, model_digest=OTHER_DIGEST)
    kept = await register(orchestrator, digest=DIGEST)

    code, reason, message = await refused(enqueue(orchestrator))
    shown = await pool(orchestrator)
    other = orchestrator.host("host-2")
    await other.register(snapshot("pool-b", host_id="host-2", model_digest=""))
    accepted = await enqueue(orchestrator)
    start = await other.start()

    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INCOMPATIBLE_MODEL")
    assert f"pool-a: model needs {DIGEST}, offers {OTHER_DIGEST}" in message
    assert any(f"pool-a reports {OTHER_DIGEST}" in warning for warning in kept.warnings)
    assert "another digest" in shown.state_reason
    assert start.job_id == accepted.job_id


async def test_digests_that_are_not_known_can_be_refused(
    start_orchestrator: StartOrchestrator,
) -> None:
    """With `catalog.unknown_digest` the pool must report the digest of the catalog."""
    orchestrator = await start_orchestrator(catalog={"unknown_digest": "refuse"})
    await ready_host(orchestrator, model_digest="")
    await register(orchestrator, digest=DIGEST)

    _, reason, message = await refused(enqueue(orchestrator))

    assert reason == "INCOMPATIBLE_MODEL"
    assert f"model needs {DIGEST}, offers none" in message


async def test_verify_tells_of_each_pool(orchestrator: Orchestrator) -> None:
    """Match, mismatch, unknown; nothing is verified while one pool contradicts."""
    host = orchestrator.host()
    await host.register(
        snapshot("a", model_digest=DIGEST),
        snapshot("b", model_digest=OTHER_DIGEST),
        snapshot("c", model_digest=""),
        snapshot("d", model_id="other", model_digest=OTHER_DIGEST),
    )
    await register(orchestrator, aliases=["small"], digest=DIGEST)

    found = await orchestrator.catalog.VerifyModel(pb.VerifyModelRequest(model_id="small"))
    await register(orchestrator, "nobody", digest=DIGEST)
    unserved = await orchestrator.catalog.VerifyModel(pb.VerifyModelRequest(model_id="nobody"))
    await update(orchestrator, ["digest"], model_id="tiny")
    without = await orchestrator.catalog.VerifyModel(pb.VerifyModelRequest(model_id="tiny"))

    assert [(each.pool_id, each.verdict) for each in found.pools] == [
        ("a", pb.DIGEST_VERDICT_MATCH),
        ("b", pb.DIGEST_VERDICT_MISMATCH),
        ("c", pb.DIGEST_VERDICT_UNKNOWN),
    ]
    assert (found.model_id, found.verified) == ("tiny", False)
    assert found.signature == pb.SIGNATURE_VERDICT_MISSING
    assert (unserved.verified, unserved.warnings[-1]) == (False, "no pool serves nobody")
    assert (without.verified, without.warnings[0][:16]) == (False, "it has no digest")


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


async def test_without_a_catalog_models_are_served_as_ever_unless_it_is_required(
    start_orchestrator: StartOrchestrator,
) -> None:
    """The refusal names the nearest names, and counts as one."""
    optional = await start_orchestrator()
    await ready_host(optional)
    required = await start_orchestrator(catalog={"required": True})
    await ready_host(required)
    await register(required, "tiny-2", aliases=["tinier"])

    accepted = await enqueue(optional)
    code, reason, message = await refused(enqueue(required))

    assert not accepted.HasField("from_catalog")
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")
    assert "did you mean 'tiny-2' or 'tinier'?" in message


async def test_a_repeated_request_is_one_whatever_the_catalog_says_meanwhile(
    orchestrator: Orchestrator,
) -> None:
    """ORCH-3024: what is compared is what the client sent; the first answer comes again."""
    await ready_host(orchestrator)
    await register(orchestrator, expected_tokens=5)

    first = await enqueue(orchestrator, request_id="r", job_id="j")
    await update(orchestrator, ["expected_tokens"], model_id="tiny", expected_tokens=9)
    await retire(orchestrator)
    again = await enqueue(orchestrator, request_id="r", job_id="j")

    assert (again.duplicate, again.job_id) == (True, first.job_id)
    assert again.from_catalog == first.from_catalog


async def test_the_catalog_outlives_the_orchestrator(start_orchestrator: StartOrchestrator) -> None:
    """With states, revisions and what is left of a grace; jobs keep what came from it."""
    store = MemoryStore()
    first = await start_orchestrator(store)
    host = await ready_host(first)
    await register(first, aliases=["small"], digest="", expected_tokens=3)
    await register(first, "gone")
    waiting = await enqueue(first, model_id="small")
    await host.start()
    await retire(first, "gone", grace_s=0)
    before = (await listed(first)).models
    await first.close()

    second = await start_orchestrator(store)
    shown = await job(second, waiting.job_id)
    after = (await listed(second)).models
    other = second.host()
    await other.register(snapshot("pool-g", model_id="gone"))
    state = (await pool(second, "pool-g")).state

    assert after == before
    assert shown.from_catalog == waiting.from_catalog
    assert state == "UNREADY"


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


async def test_signatures_are_checked_with_trusted_keys(
    start_orchestrator: StartOrchestrator,
) -> None:
    """One of theirs is verified, another refuses the registration, none is a warning."""
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    orchestrator = await start_orchestrator(
        catalog={"trusted_keys": {"release": {"public_key": public(key)}}}
    )
    await ready_host(orchestrator, model_digest=DIGEST)

    wrong = await refused(register(orchestrator, digest=DIGEST, signature=signed(stranger)))
    kept = await register(orchestrator, digest=DIGEST, signature=signed(key))
    found = await orchestrator.catalog.VerifyModel(pb.VerifyModelRequest(model_id="tiny"))
    without = await register(orchestrator, "other", digest=DIGEST)

    assert wrong[1:] == (
        "INVALID_PARAMS",
        "model.signature was made by no key of catalog.trusted_keys",
    )
    assert not kept.warnings
    assert (found.verified, found.signature, found.signed_by) == (
        True,
        pb.SIGNATURE_VERDICT_VERIFIED,
        "release",
    )
    assert any("no signature" in warning for warning in without.warnings)


async def test_metrics_and_pools_change_in_one_step(start_orchestrator: StartOrchestrator) -> None:
    """`model_state` and `pool_state` are read from one core; verifications are counted."""
    orchestrator = await start_orchestrator(metrics_listen="127.0.0.1:0")
    await ready_host(orchestrator, model_digest=DIGEST)
    scrape = functools.partial(_scraped, orchestrator)
    await register(orchestrator, digest=DIGEST)
    active = await scrape()

    await retire(orchestrator, grace_s=600)
    retiring = await scrape()
    await retire(orchestrator, grace_s=0)
    retired = await scrape()

    def states(text: str) -> tuple[list[str], list[str]]:
        model = [
            state
            for state in ("active", "retiring", "retired")
            if f'model_state{{model_id="tiny",state="{state}"}} 1.0' in text
        ]
        pools = [
            state
            for state in ("ready", "unready")
            if f'pool_state{{pool_id="pool-a",state="{state}"}} 1.0' in text
        ]
        return model, pools

    assert states(active) == (["active"], ["ready"])
    assert states(retiring) == (["retiring"], ["ready"])
    assert states(retired) == (["retired"], ["unready"])
    for labels in (
        'engine="mock",reason="digest_match",result="ok"',
        'engine="",reason="signature_missing",result="warned"',
    ):
        assert f"catalog_verifications_total{{{labels}}} 1.0" in active


async def _scraped(orchestrator: Orchestrator) -> str:
    url = f"http://127.0.0.1:{orchestrator.server.metrics_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def test_a_recorded_catalog_replays_equal(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """LO-207: every change, and what it did to jobs and pools."""
    flight = tmp_path / "flight"
    orchestrator = await start_orchestrator(recorder={"path": str(flight)})
    host = await ready_host(orchestrator, slots_total=1, slots_free=1, model_digest=DIGEST)
    await register(orchestrator, aliases=["small"], digest=DIGEST, expected_tokens=3)
    await enqueue(orchestrator, model_id="small")
    start = await host.start()
    waits = await enqueue(orchestrator)
    await update(orchestrator, ["digest"], model_id="tiny", digest=OTHER_DIGEST)
    await retire(orchestrator, grace_s=0)
    await all_events(orchestrator, waits.job_id)
    await host.finish(start.handle)
    await activate(orchestrator)
    await orchestrator.catalog.DeleteModel(pb.DeleteModelRequest(model_id="tiny", force=True))
    await orchestrator.close()

    report = replay(recordings(flight))

    assert (report.runs, report.gaps, report.hashes) == (1, 0, 1)
    assert report.decisions > 10


async def test_settings_of_the_catalog_change_without_a_restart(
    start_orchestrator: StartOrchestrator,
) -> None:
    """HME-003: what digests may be, the grace and the keys; for whoever comes next."""
    orchestrator = await start_orchestrator()
    await ready_host(orchestrator, model_digest="")
    await register(orchestrator, digest=DIGEST)
    before = await enqueue(orchestrator)
    live, key = orchestrator.server.config, Ed25519PrivateKey.generate()
    table = {
        "unknown_digest": "refuse",
        "retire_grace_ms": 5_000,
        "trusted_keys": {"release": {"public_key": public(key)}},
    }
    wanted = live.running.model_copy(update={"catalog": CatalogTable.model_validate(table)})

    live.prepare(live.running, wanted)()
    _, reason, _ = await refused(enqueue(orchestrator))
    signed_now = await update(orchestrator, ["signature"], model_id="tiny", signature=signed(key))
    retired = await retire(orchestrator)

    assert before.job_id
    assert reason == "INCOMPATIBLE_MODEL"
    assert not any("signature" in warning for warning in signed_now.warnings)
    assert retired.grace_until.ToMilliseconds() - retired.retired_at.ToMilliseconds() == 5_000


class SteppedStore(MemoryStore):
    """A journal of which each commit waits for the test's word."""

    def __init__(self) -> None:
        super().__init__()
        self.stepped = False
        self.waiting = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0)

    async def commit(self, batch: Sequence[Record]) -> None:
        """Waits."""
        if self.stepped:
            self.waiting.release()
            await self.go.acquire()
        await super().commit(batch)


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
