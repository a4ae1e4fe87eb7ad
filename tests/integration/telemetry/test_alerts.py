"""Every alert fires on what it is about and on nothing less, and has its page in the runbook."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ci.dashboards.boards import BOARDS
from tests.integration.telemetry.prometheus import needs_prometheus, promtool
from tests.integration.telemetry.queries import RULES, rules

ROOT = Path(__file__).parents[3]
SERVICE = 'job="orchestratord", instance="o"'
HOST = 'job="pool-managerd", instance="h"'
# A minute's values each; `x60` holds them for an hour.
HOUR = "x60"


def _same(value: float) -> str:
    return f"{value}+0{HOUR}"


def _grows(by: float) -> str:
    return f"0+{by}{HOUR}"


def _buckets(metric: str, bounds: Mapping[str, int], **labels: str) -> dict[str, str]:
    """A histogram that grows each minute by so many observations up to each bound."""
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return {
        f'{metric}_bucket{{{SERVICE}{more}, le="{bound}"}}': _grows(count)
        for bound, count in bounds.items()
    }


@dataclass(frozen=True, slots=True)
class Case:
    """Series under which an alert fires within the hour, and such under which it does not."""

    fires: Mapping[str, str]
    stays: Mapping[str, str]


def _gauge(name: str, labels: str, bad: float, good: float) -> Case:
    series = f"{name}{{{labels}}}"
    return Case({series: _same(bad)}, {series: _same(good)})


def _shares(part: str, rest: str, bad: float, good: float) -> Case:
    """Two counters that grow by 100 a minute together."""
    return Case(
        {part: _grows(bad), rest: _grows(100 - bad)},
        {part: _grows(good), rest: _grows(100 - good)},
    )


def _histogram(metric: str, slow: str, fast: str, **labels: str) -> Case:
    """All observations in the bucket beyond `fast` and up to `slow`; or all within `fast`."""
    return Case(
        _buckets(metric, {fast: 0, slow: 10, "+Inf": 10}, **labels),
        _buckets(metric, {fast: 10, slow: 10, "+Inf": 10}, **labels),
    )


CASES: Mapping[str, Case] = {
    "OrchestratorDown": _gauge("up", SERVICE, 0, 1),
    "PoolManagerDown": _gauge("up", HOST, 0, 1),
    "NoPoolReady": _gauge("pool_state", 'pool_id="p", state="ready"', 0, 1),
    "EventLoopBehind": _histogram("orchd_event_loop_lag_ms", "250", "50"),
    "Draining": _gauge("orchd_draining", SERVICE, 1, 0),
    "AccountsDoNotAddUp": Case(
        {
            "tasks_enqueued_total": _same(10),
            "tasks_finished_total": _same(7),
            "tasks_live": _same(2),
        },
        {
            "tasks_enqueued_total": _same(10),
            "tasks_finished_total": _same(7),
            "tasks_live": _same(3),
        },
    ),
    "JournalNotWritable": _gauge("orchd_journal_writable", SERVICE, 0, 1),
    "JournalDiskLow": _gauge("orchd_disk_free_bytes", SERVICE, 9e8, 2e9),
    "CommitsSlow": _histogram("orchd_commit_time_ms", "500", "250"),
    "RecorderLosesSteps": Case(
        {"orchd_recorder_lost_steps_total": _grows(1)},
        {"orchd_recorder_lost_steps_total": _same(5)},
    ),
    "QueueNearlyFull": Case(
        {"queue_depth": _same(95), "orchd_queue_capacity": _same(100)},
        {"queue_depth": _same(85), "orchd_queue_capacity": _same(100)},
    ),
    "JobsRefusedQueueFull": _shares(
        'orchd_admission_rejected_total{reason="queue_full"}',
        "orchd_admission_enqueued_total",
        10,
        1,
    ),
    "WaitLong": _histogram("orchd_queue_wait_time_ms", "300000", "60000"),
    "NothingStarts": Case(
        {"orchd_admission_queue_depth": _same(3)},
        {
            "orchd_admission_queue_depth": _same(3),
            'orchd_queue_wait_time_ms_count{pool_id="p"}': _grows(0.3),
        },
    ),
    "FirstTokenSlow": _histogram("latency_first_token_ms", "3000", "2000", priority="interactive"),
    "JobsFail": _shares(
        'tasks_finished_total{outcome="failed"}',
        'tasks_finished_total{outcome="finished"}',
        10,
        1,
    ),
    "DeadlinesMissed": _shares(
        'deadline_outcomes_total{met="no"}', 'deadline_outcomes_total{met="yes"}', 60, 40
    ),
    "PredictionsOff": _histogram("prediction_error_ms", "30000", "10000", kind="start"),
    "HostAway": _gauge("pool_state", 'pool_id="p", state="disconnected"', 1, 0),
    "HostFlaps": Case(
        {'orchd_host_losses_total{host_id="h"}': _grows(1)},
        {'orchd_host_losses_total{host_id="h"}': _grows(0.1)},
    ),
    "PoolUnready": _gauge("pool_state", 'pool_id="p", state="unready"', 1, 0),
    "EngineRestarts": Case(
        {'engine_restarts_total{pool_id="p"}': _grows(1)},
        {'engine_restarts_total{pool_id="p"}': _grows(0.1)},
    ),
    "Failovers": _shares("failovers_total", "tasks_started_total", 10, 1),
    "RelayNearLimit": Case(
        {"orchd_relay_held_bytes": _same(95), "orchd_relay_limit_bytes": _same(100)},
        {"orchd_relay_held_bytes": _same(80), "orchd_relay_limit_bytes": _same(100)},
    ),
    "HostHoldsMuch": Case(
        {"poold_held_bytes": _same(95), "poold_held_limit_bytes": _same(100)},
        {"poold_held_bytes": _same(80), "poold_held_limit_bytes": _same(100)},
    ),
    "ArtifactsNearQuota": Case(
        {"orchd_artifact_bytes": _same(95), "orchd_artifact_quota_bytes": _same(100)},
        {
            "orchd_artifact_bytes": _same(80),
            "orchd_artifact_quota_bytes": _same(100),
            "orchd_artifacts": _same(80),
            "orchd_artifacts_max": _same(100),
        },
    ),
    "ArtifactsDamaged": Case(
        {"orchd_artifact_damaged_total": _grows(1)},
        {"orchd_artifact_damaged_total": _same(3)},
    ),
    "GpuUnwell": _gauge("gpu_health", 'host_id="h", device="g", state="lost"', 1, 0),
    "GpuHot": _gauge("gpu_temperature_celsius", 'host_id="h", device="g"', 90, 85),
    "GpuSlowed": _gauge("gpu_slowed", 'host_id="h", device="g", reason="power_brake"', 1, 0),
    "GpuMemoryErrors": Case(
        {'gpu_ecc_uncorrected_total{host_id="h", device="g"}': _grows(1)},
        {'gpu_ecc_uncorrected_total{host_id="h", device="g"}': _same(3)},
    ),
}
# An operator took the model out of service: its pool takes nothing, and nothing is wrong with it.
RETIRED = {
    'pool_state{pool_id="p", state="unready"}': _same(1),
    'pool_info{pool_id="p", model_id="old"}': _same(1),
    'model_state{model_id="old", state="retired"}': _same(1),
}
# Where series are missing, or values beyond the budgets of labels were added up.
EDGES: Mapping[str, Case] = {
    "ArtifactsNearQuota": Case(
        {
            "orchd_artifact_bytes": _same(1),
            "orchd_artifact_quota_bytes": _same(100),
            "orchd_artifacts": _same(95),
            "orchd_artifacts_max": _same(100),
        },
        {"orchd_artifacts": _same(95)},
    ),
    # Jobs were placed once; nobody waits.
    "NothingStarts": Case(
        {
            "orchd_admission_queue_depth": _same(3),
            'orchd_queue_wait_time_ms_count{pool_id="p"}': _same(7),
        },
        {
            "orchd_admission_queue_depth": _same(0),
            'orchd_queue_wait_time_ms_count{pool_id="p"}': _same(7),
        },
    ),
    "NoPoolReady": Case({"orchd_hosts_connected": _same(0)}, {"up": _same(0)}),
    "AccountsDoNotAddUp": Case(
        {"tasks_enqueued_total": _same(10), "tasks_live": _same(9)},
        {"tasks_enqueued_total": _same(10), "tasks_live": _same(10)},
    ),
    # A series that is there before its first increment, which a rate sees then.
    "HostFlaps": Case(
        {'orchd_host_losses_total{host_id="h"}': "0x48 1 2 3 4x60"},
        {'orchd_host_losses_total{host_id="h"}': "0x48 1 2 2x60"},
    ),
    "EngineRestarts": Case(
        {
            f'engine_restarts_total{{pool_id="p", reason="{reason}"}}': f"0x{48 + later} 1x60"
            for later, reason in enumerate(("engine_exited", "engine_unhealthy", "device_error"))
        }
        | {'engine_restarts_total{pool_id="p", reason="restart_storm"}': "0x52 1x60"},
        # Who reloads a model again and again knows that its engine is new each time.
        {
            'engine_restarts_total{pool_id="p", reason="engine_exited"}': "0x48 1 2 2x60",
            'engine_restarts_total{pool_id="p", reason="operator"}': _grows(1),
        },
    ),
    "HostAway": _gauge("pool_state", 'pool_id="other", state="disconnected"', 2, 0),
    # Beyond the budgets several pools are called `other`: one of them is not excused by another.
    "PoolUnready": Case(
        {
            'pool_state{pool_id="other", state="unready"}': _same(2),
            'pool_info{pool_id="other", model_id="old"}': _same(1),
            'model_state{model_id="old", state="retired"}': _same(1),
        },
        RETIRED,
    ),
    "GpuUnwell": _gauge("gpu_health", 'host_id="other", device="g", state="lost"', 2, 0),
    "GpuSlowed": Case(
        {'gpu_slowed{reason="hardware_thermal"}': _same(1)},
        {'gpu_slowed{reason="power_cap"}': _same(1)},
    ),
}
NAMES = [rule["alert"] for rule in rules()]


def test_every_alert_has_a_case() -> None:
    """A new rule cannot be forgotten here."""
    assert sorted(CASES) == sorted(NAMES)


@pytest.mark.parametrize("rule", rules(), ids=NAMES)
def test_every_alert_says_what_it_means_and_where_to_read_on(rule: Mapping[str, Any]) -> None:
    """The page exists, and tells where to look and what to do."""
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    pages = re.split(r"^### ", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    (page,) = [page for page in pages if page.splitlines()[0].lower() == anchor]
    assert page.splitlines()[0] == rule["alert"]
    assert f"*{rule['labels']['severity']}: {rule['annotations']['summary']}.*" in page
    assert "- Look: " in page
    assert "- Do: " in page


def test_the_runbook_names_dashboards_and_panels_that_there_are() -> None:
    """Whoever looks at night finds them under these words, on a dashboard of the same line."""
    shown = {
        board.title.removeprefix("llama-orch / "): [
            shown.title for row in board.rows for shown in (row, *row.panels)
        ]
        for board in BOARDS
    }
    looks = [
        re.findall(r"(?<!\*)\*([^*]+)\*", line)
        for line in (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("- Look: ")
    ]
    assert sum(map(len, looks)) > len(shown)

    for words in looks:
        titles = [title for word in words for title in shown.get(word, ())]
        unknown = [
            word
            for word in words
            if word not in shown and not any(title.startswith(word) for title in titles)
        ]
        assert unknown == [], words


async def _fired(directory: Path, series: Mapping[str, Mapping[str, str]], at: str) -> list[str]:
    """Which alerts fire at an instant, each on series of its own."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": v} for name, v in mine.items()],
            # promtool names what it did not expect.
            "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": []}],
        }
        for alert, mine in series.items()
    ]
    path = directory / "tests.yml"
    # YAML takes JSON as it is.
    path.write_text(
        json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "5m", "tests": tests}),
        encoding="utf-8",
    )
    code, said = await promtool("test", "rules", str(path))
    fired = sorted(set(re.findall(r'alertname="(\w+)"', said)))
    assert ("FAILED" in said) == bool(code) == bool(fired), said
    return fired


@needs_prometheus
async def test_alerts_fire_on_what_they_are_about_and_on_nothing_less(tmp_path: Path) -> None:
    """Within the hour; not at the start, unless it is to be at once; not below the bound."""
    fires = {alert: case.fires for alert, case in CASES.items()}
    later = {rule["alert"] for rule in rules() if rule["for"] != "0m"}

    assert await _fired(tmp_path, fires, "55m") == sorted(CASES)
    assert not later & set(await _fired(tmp_path, fires, "0m"))
    stays = {alert: case.stays for alert, case in CASES.items()}
    assert await _fired(tmp_path, stays, "55m") == []


def _values(text: str) -> list[float]:
    """The minutes of `a+bxN`."""
    match = re.fullmatch(r"([\d.e]+)\+([\d.e]+)x(\d+)", text)
    assert match is not None, text
    first, step = float(match[1]), float(match[2])
    return [first + step * minute for minute in range(int(match[3]) + 1)]


def _mended(name: str, bad: str | None, good: str | None) -> str:
    """An hour of `bad` and then two and a half of `good`; a counter goes on from where it was."""
    before = _values(bad) if bad else []
    hour = [f"{value:g}" for value in before] or ["_"] * (len(_values(good)) if good else 0)
    after = _values(good) if good else before[-1:] * len(before)
    step = after[1] - after[0]
    rises = before[-1:] and re.search(r"_(total|bucket|count)\b", name)
    base = before[-1] if rises else after[0]
    return " ".join([*hour, *(f"{base + step * minute:g}" for minute in range(1, 151))])


@needs_prometheus
async def test_alerts_end_when_what_they_are_about_is_over(tmp_path: Path) -> None:
    """An alert that stays on for ever is switched off by whoever is woken by it."""
    series = {
        alert: {
            name: _mended(name, case.fires.get(name), case.stays.get(name))
            for name in {**case.fires, **case.stays}
        }
        for alert, case in CASES.items()
    }

    assert await _fired(tmp_path, series, "60m") == sorted(CASES)
    assert await _fired(tmp_path, series, "210m") == []


@needs_prometheus
async def test_alerts_are_right_where_series_are_missing_or_folded(tmp_path: Path) -> None:
    """A first lost job, a fleet beyond the budgets; not a server that is away, nor a full load."""
    fires = {alert: case.fires for alert, case in EDGES.items()}
    stays = {alert: case.stays for alert, case in EDGES.items()}

    assert await _fired(tmp_path, fires, "55m") == sorted(EDGES)
    assert await _fired(tmp_path, stays, "55m") == []


@needs_prometheus
async def test_promtool_takes_the_rules_and_the_example_configuration() -> None:
    """As an operator's Prometheus would."""
    for kind, name in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        code, said = await promtool("check", kind, str(RULES.parent / name))
        assert code == 0, said
