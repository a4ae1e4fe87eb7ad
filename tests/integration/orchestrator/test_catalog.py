"""CatalogService: a client need only name a model. ORCH-3031, ORCH-3037."""

import functools
from pathlib import Path

import aiohttp
import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llamaorch.orchestrator.v1 import catalog_service_pb2 as pb
from llamaorch.orchestrator.v1 import job_pb2
from llamaorch.orchestrator.v1 import orchestrator_service_pb2 as jobs_pb
from orchestrator_core.config.catalog import CatalogTable
from orchestrator_core.recorder.recorder import recordings
from orchestrator_core.recorder.replay import replay
from orchestrator_core.store.memory import MemoryStore
from tests.integration.orchestrator.calls import (
    all_events,
    enqueue,
    job,
    kinds,
    ready_host,
    text,
)
from tests.integration.orchestrator.catalog_calls import (
    DIGEST,
    OTHER_DIGEST,
    activate,
    listed,
    pool,
    refused,
    register,
    retire,
    update,
)
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot
from tests.unit.orchestrator_core.servicers.signing import public, signed


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
