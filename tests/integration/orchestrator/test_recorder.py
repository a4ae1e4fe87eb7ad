"""A running orchestratord records itself; what it recorded replays and explains."""

from pathlib import Path

import pytest

from llamaorch.orchestrator.v1 import job_pb2, orchestrator_service_pb2
from llamaorch.pool.v1 import snapshot_pb2
from llamaorch_client.cli import main as llorch
from orchestrator_core.config.schema import Config
from orchestrator_core.recorder.recorder import recordings
from orchestrator_core.recorder.replay import replay
from orchestrator_core.server import OrchestratorServer
from tests.integration.orchestrator.calls import all_events, enqueue, ready_host
from tests.integration.orchestrator.conftest import StartOrchestrator
from tests.integration.orchestrator.scripted_host import snapshot
from tests.unit.orchestrator_core.recorder.recordings import inflated

PROMPT = "a prompt that must not be on disk"


async def test_a_recorded_run_replays_equal_and_holds_no_prompt(
    start_orchestrator: StartOrchestrator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From start to stop: `llorch replay` finds no difference. LO-207."""
    flight = tmp_path / "flight"
    orchestrator = await start_orchestrator(recorder={"path": str(flight)})
    host = await ready_host(orchestrator)
    receipt = await enqueue(orchestrator, input=job_pb2.JobInput(text=PROMPT))
    start = await host.start()
    await host.started(start.handle)
    await host.tokens(start.handle, "out", "put")
    await host.finish(start.handle)
    await all_events(orchestrator, receipt.job_id)
    await orchestrator.close()

    capsys.readouterr()
    assert llorch.main(["replay", str(flight)]) == 0
    assert capsys.readouterr().out.startswith("All equal: ")
    report = replay(recordings(flight))
    assert (report.runs, report.gaps, report.hashes) == (1, 0, 1)
    assert report.decisions > 5
    for path in recordings(flight):
        clear = inflated(path)
        assert receipt.job_id.encode() in clear
        assert PROMPT.encode() not in clear
        assert b"output" not in clear.replace(b"output_", b"").replace(b"_output", b"")


async def test_explain_lists_every_pool_and_what_it_had_reported(
    start_orchestrator: StartOrchestrator, tmp_path: Path
) -> None:
    """Twelve candidates and twenty exclusions, of which a job keeps five and sixteen. LO-207."""
    flight = tmp_path / "flight"
    orchestrator = await start_orchestrator(recorder={"path": str(flight)})
    host = orchestrator.host()
    await host.register(
        *(snapshot(f"good-{i:02d}", perf_tokens_per_s=10.0 + i) for i in range(12)),
        *(snapshot(f"down-{i:02d}", state=snapshot_pb2.POOL_STATE_UNREADY) for i in range(20)),
    )
    receipt = await enqueue(orchestrator)
    await host.start()
    request = orchestrator_service_pb2.ExplainJobRequest(job_id=receipt.job_id)

    full = (await orchestrator.jobs.ExplainJob(request)).decisions[0]
    for path in recordings(flight):
        path.unlink()
    short = (await orchestrator.jobs.ExplainJob(request)).decisions[0]

    assert full.complete
    assert (len(full.candidates), len(full.exclusions)) == (12, 20)
    best = full.candidates[0]
    assert (best.pool_id, best.snapshot.perf_tokens_per_s) == ("good-11", 21.0)
    assert (best.snapshot.slots_total, best.snapshot.vram_free_bytes) == (2, 6 << 30)
    assert not short.complete
    assert (len(short.candidates), len(short.exclusions)) == (5, 16)
    assert (short.candidates_total, short.exclusions_total) == (12, 20)
    assert [c.pool_id for c in short.candidates] == [c.pool_id for c in full.candidates[:5]]


async def _run_once(**tables: object) -> None:
    config = Config.model_validate({"listen": "127.0.0.1:0", **tables})
    server = OrchestratorServer(config)
    await server.start()
    await server.stop()


async def test_a_journal_on_disk_is_recorded_beside_it_and_one_in_memory_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On by default, off with one key, and nothing on disk where nothing shall be kept."""
    monkeypatch.chdir(tmp_path)
    on, off = tmp_path / "on" / "journal.db", tmp_path / "off" / "journal.db"
    for journal in (on, off):
        journal.parent.mkdir()

    await _run_once(store={"kind": "memory"})
    await _run_once(store={"kind": "sqlite", "path": str(off)}, recorder={"enabled": False})
    assert not recordings(tmp_path)
    assert "flight" not in _names(tmp_path) + _names(off.parent)

    await _run_once(store={"kind": "sqlite", "path": str(on)})
    assert replay(recordings(on.parent / "flight")).steps >= 1


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]
