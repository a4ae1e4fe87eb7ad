"""What panels show of a fleet in which names repeat and hosts are away."""

import json
from collections.abc import Mapping
from pathlib import Path

from tests.integration.telemetry.prometheus import needs_prometheus, promtool
from tests.integration.telemetry.queries import panel_queries

# Two hosts, whose processors are both called cpu; on the first two pools use it.
POOLS = {"p": ("h1", 0.25), "q": ("h1", 0.25), "r": ("h2", 0.75)}


async def _shows(directory: Path, panel: str, series: Mapping[str, str]) -> str:
    """What promtool says of a panel's query: its present values."""
    query = panel_queries()[panel]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": value} for name, value in series.items()],
        # promtool tells what it got instead of nothing.
        "promql_expr_test": [{"expr": query, "eval_time": "0m", "exp_samples": []}],
    }
    path = directory / "panel.yml"
    path.write_text(json.dumps({"rule_files": [], "tests": [test]}), encoding="utf-8")
    _, said = await promtool("test", "rules", str(path))
    return said


@needs_prometheus
async def test_devices_of_one_name_on_two_hosts_are_two_lines(tmp_path: Path) -> None:
    """Each with the greatest of what its pools tell, and as share of its own memory."""
    busy, used = {}, {}
    for pool, (host, share) in POOLS.items():
        busy[f'gpu_utilization{{pool_id="{pool}", device="cpu"}}'] = f"{share}"
        used[f'vram_used_bytes{{pool_id="{pool}", device="cpu"}}'] = f"{8 * share}"
        busy[f'pool_info{{pool_id="{pool}", host_id="{host}"}}'] = "1"
    sizes = {f'vram_total_bytes{{host_id="{host}", device="cpu"}}': "8" for host in ("h1", "h2")}

    loads = await _shows(tmp_path, "gpus / Busy / 0", busy)
    shares = await _shows(tmp_path, "gpus / Memory in use / 0", busy | used | sizes)

    for said in (loads, shares):
        assert '{device="cpu", host_id="h1"} 2.5E-01' in said
        assert '{device="cpu", host_id="h2"} 7.5E-01' in said


@needs_prometheus
async def test_slots_of_a_pool_that_is_away_are_not_free(tmp_path: Path) -> None:
    """Of two pools the ready one is full: nothing is left, whatever the other had free."""
    series = {
        'pool_slots{pool_id="p", state="busy"}': "2",
        'pool_slots{pool_id="p", state="free"}': "0",
        'pool_slots{pool_id="q", state="busy"}': "0",
        'pool_slots{pool_id="q", state="free"}': "6",
        'pool_state{pool_id="p", state="ready"}': "1",
        'pool_state{pool_id="q", state="ready"}': "0",
        'pool_state{pool_id="q", state="disconnected"}': "1",
    }

    assert "{} 1E+00" in await _shows(tmp_path, "fleet / Busy / 0", series)
