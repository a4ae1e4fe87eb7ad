"""How full the store of artifacts is, what comes, goes, is refused and damaged. ORCH-3028."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from llamaorch.orchestrator.v1 import artifact_service_pb2 as pb
from tests.integration.orchestrator.artifact_calls import (
    fetch,
    get,
    header,
    of,
    put,
    put_input,
    refused,
    sha256,
)
from tests.integration.orchestrator.calls import enqueue, ready_host
from tests.integration.orchestrator.conftest import Orchestrator, StartOrchestrator
from tests.integration.telemetry.both import scrape

CONTENT = b"12345678"
EMPTY = {
    "orchd_artifacts": 0.0,
    "orchd_artifacts_max": 3.0,
    "orchd_artifact_bytes": 0.0,
    "orchd_artifact_quota_bytes": 20.0,
    'orchd_artifact_refusals_total{reason="artifact-quota"}': 0.0,
    'orchd_artifact_refusals_total{reason="artifact-identity-quota"}': 0.0,
    'orchd_artifact_refusals_total{reason="artifact-count"}': 0.0,
    'orchd_artifact_moved_bytes_total{direction="in"}': 0.0,
    'orchd_artifact_moved_bytes_total{direction="out"}': 0.0,
    'orchd_artifact_moved_bytes_total{direction="host"}': 0.0,
    "orchd_artifact_damaged_total": 0.0,
}


async def started(start_orchestrator: StartOrchestrator, directory: Path) -> Orchestrator:
    """A server with room for three artifacts of 20 bytes together."""
    return await start_orchestrator(
        None,
        metrics_listen="127.0.0.1:0",
        store={"kind": "sqlite", "path": str(directory / "journal.db")},
        artifacts={"quota_bytes": 20, "count_max": 3, "free_bytes_min": 0},
    )


async def shown(kept: Orchestrator) -> dict[str, float]:
    """Every series about artifacts."""
    text = await scrape(f"http://127.0.0.1:{kept.server.metrics_port}/metrics")
    return {
        sample.name + "".join(f'{{{key}="{value}"}}' for key, value in sample.labels.items()): value
        for family in text_string_to_metric_families(text)
        if family.name.startswith("orchd_artifact")
        for sample, value in ((each, each.value) for each in family.samples)
    }


async def test_what_fills_the_quota_comes_and_goes_is_shown(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """Counters begin at 0; equal content is stored once, and is sent as often as it is read."""
    kept = await started(start_orchestrator, tmp_path)
    before = await shown(kept)
    first = await put(kept.artifacts, CONTENT)
    await put(kept.artifacts, CONTENT, header(tags=["same"]))
    full = await refused(put(kept.artifacts, bytes(13)))
    await get(kept.artifacts, first.artifact.artifact_id, offset=3)
    filled = await shown(kept)
    request = pb.DeleteArtifactRequest(artifact_id=first.artifact.artifact_id)

    await kept.artifacts.DeleteArtifact(request)

    assert before == EMPTY
    assert full[1] == "artifact-quota"
    assert filled == EMPTY | {
        "orchd_artifacts": 2.0,
        "orchd_artifact_bytes": 8.0,
        'orchd_artifact_refusals_total{reason="artifact-quota"}': 1.0,
        'orchd_artifact_moved_bytes_total{direction="in"}': 29.0,
        'orchd_artifact_moved_bytes_total{direction="out"}': 5.0,
    }
    left = await shown(kept)
    assert (left["orchd_artifacts"], left["orchd_artifact_bytes"]) == (1.0, 8.0)


async def test_damage_and_refusals_are_counted_by_reason(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """A file that was changed, an id that is not there, one artifact too many."""
    kept = await started(start_orchestrator, tmp_path)
    artifact_id = (await put(kept.artifacts, CONTENT)).artifact.artifact_id
    (tmp_path / "artifacts" / "objects" / sha256(CONTENT)).write_bytes(b"1234567x")

    await refused(get(kept.artifacts, artifact_id))
    await refused(get(kept.artifacts, "0" * 32))
    for number in (2, 3):
        await put(kept.artifacts, b"", header(tags=[str(number)]))
    await refused(put(kept.artifacts, b"", header(tags=["4"])))

    found = await shown(kept)
    refusals = {name: count for name, count in found.items() if "refusals" in name and count}
    assert found["orchd_artifact_damaged_total"] == 1.0
    assert refusals == {
        'orchd_artifact_refusals_total{reason="DATA_LOSS"}': 1.0,
        'orchd_artifact_refusals_total{reason="NOT_FOUND"}': 1.0,
        'orchd_artifact_refusals_total{reason="artifact-count"}': 1.0,
    }


async def test_what_hosts_fetch_is_shown(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """As they get it: encoded as the input of a job."""
    kept = await started(start_orchestrator, tmp_path)
    host = await ready_host(kept)
    artifact_id = await put_input(kept, b"hello")
    receipt = await enqueue(kept, input=of(artifact_id))
    await host.start()

    whole = await fetch(kept, receipt.job_id)

    moved = (await shown(kept))['orchd_artifact_moved_bytes_total{direction="host"}']
    assert moved == whole.ByteSize()
