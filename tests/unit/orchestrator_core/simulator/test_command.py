"""`llorch simulate` as a whole, on what ships with it."""

import json
from pathlib import Path

import pytest

from llamaorch_client.cli.main import main
from orchestrator_core.simulator import plot
from orchestrator_core.simulator.study import Study, expand, policy_names, run_all
from orchestrator_core.simulator.traces import Request
from tests.unit.orchestrator_core.simulator.cases import HOMELAB

FEW = ["simulate", "--requests", "60", "--processes", "1"]


def test_the_command_works_without_a_server_or_files(capsys: pytest.CaptureFixture[str]) -> None:
    """An excerpt and sample fleets ship with it."""
    code = main([*FEW, "--policy", "all", "--deadlines"])

    shown = capsys.readouterr().out
    assert code == 0
    assert "homelab: 60 jobs on 3 pools, load 0.85" in shown
    assert all(name in shown for name in policy_names())
    assert "Brier skill" in shown
    assert "no deadlines" not in shown


def test_without_deadlines_no_job_is_called_on_time(capsys: pytest.CaptureFixture[str]) -> None:
    """A share of 100 % would look like a promise that was kept."""
    assert main([*FEW, "--policy", "predicted_end"]) == 0
    shown = capsys.readouterr().out
    assert main([*FEW, "--policy", "predicted_end", "--json"]) == 0
    (policy,) = json.loads(capsys.readouterr().out)["results"][0]["policies"]

    assert "no deadlines" in shown
    assert policy["on_time_share"] is None


def test_the_same_question_has_the_same_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte, in JSON."""
    answers = []
    for _ in range(2):
        assert main([*FEW, "--json", "--policy", "all", "--deadlines", "--seed", "3"]) == 0
        answers.append(capsys.readouterr().out)

    assert answers[0] == answers[1]
    record = json.loads(answers[0])
    assert (record["format"], record["version"]) == ("llamaorch-simulation", 1)
    policies = record["results"][0]["policies"]
    assert [policy["policy"] for policy in policies] == list(policy_names())


def test_what_if_shows_both_fleets_under_the_same_arrivals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another card takes load off the others."""
    out = tmp_path / "result.json"
    asked = [*FEW, "--policy", "predicted_end", "--what-if", "+rtx3090", "--out", str(out)]

    code = main(asked)

    before, after = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert code == 0
    assert (len(before["pools"]), len(after["pools"])) == (3, 4)
    assert after["load"] < before["load"]
    mean_before, mean_after = (
        result["policies"][0]["completion"]["mean_ms"] for result in (before, after)
    )
    assert mean_after < mean_before
    assert "vs before" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["picture.svg", "picture.png"])
def test_a_picture_is_drawn_and_drawn_the_same_again(tmp_path: Path, name: str) -> None:
    """Bytes and all."""
    pictures = []
    for turn in ("a", "b"):
        (tmp_path / turn).mkdir()
        path = tmp_path / turn / name
        assert main([*FEW, "--policy", "predicted_end", "--deadlines", "--plot", str(path)]) == 0
        pictures.append(path.read_bytes())

    assert pictures[0] == pictures[1]
    assert pictures[0][:5] in (b"<?xml", b"\x89PNG\r")


def test_without_matplotlib_a_picture_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says how to get it."""
    monkeypatch.setattr(plot, "find_spec", lambda _: None)

    code = main([*FEW, "--plot", "x.svg"])

    assert code == 2
    assert "pip install 'llamaorch[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "best"], "--policy 'best' is not known; choose from all, predicted_end"),
        (["--policy", "all,Predicted_ende"], "is not known; predicted_end may be meant"),
        (["--fleet", "nowhere"], "no fleet 'nowhere'; it has homelab, mixed_rack, uniform_rack"),
        (["--fleet", "missing.toml:x"], "missing.toml: No such file"),
        (["--trace", "missing.csv"], "missing.csv: No such file"),
        (["--what-if", "+a100"], "the fleet has no pool 'a100'"),
        (["--core", "batch_every"], "must be KEY=VALUE"),
        (["--core", "speed=1"], "the core has no setting 'speed'"),
        (["--core", "placement.decline_offers=false"], "did you mean decline_offers?"),
        (["--core", "batch_every=[1]"], "batch_every must be a whole number, is [1]"),
        (["--core", 'scorer="fast"'], "scorer must be predicted_end or latency_target"),
        (["--core", "throttle=3"], "throttle must be left alone here"),
        (["--core", "decline_offers=0"], "decline_offers must be true or false, is 0"),
        (["--out", "missing/x.json"], "missing/x.json: there is no directory missing"),
        (["--plot", "missing/x.svg"], "missing/x.svg: there is no directory missing"),
        (["--plot", "x.pdf"], "must end in .png or .svg"),
    ],
)
def test_a_wrong_question_is_answered_with_what_to_change(
    capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    """One sentence and the exit code for a wrong request."""
    code = main([*FEW, *more])

    assert code == 2
    assert message in capsys.readouterr().err


def test_no_bound_is_named_where_expired_jobs_are_missing_from_the_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It holds for all jobs, and says nothing about a mean over some."""
    for more, named in (([], True), (["--deadlines"], False)):
        assert main([*FEW, "--policy", "arrival:round_robin", *more]) == 0
        assert ("no dispatcher" in capsys.readouterr().out) is named


def test_a_choice_is_given_to_the_core_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """As in the configuration file, but as JSON."""
    few = [*FEW, "--policy", "predicted_end", "--deadlines"]

    assert main([*few, "--core", 'scorer="latency_target"']) == 0
    assert "predicted_end" in capsys.readouterr().out


def test_a_bare_rival_means_both_ways_of_binding() -> None:
    """And each policy comes once."""
    assert expand("random,predicted_end,late:random") == (
        "late:random",
        "arrival:random",
        "predicted_end",
    )


def test_processes_do_not_change_the_answer() -> None:
    """Each policy has its own dice."""
    requests = tuple(Request(400.0 * n, 100, 40) for n in range(40))
    study = Study(HOMELAB, requests)
    names = ("predicted_end", "late:random", "arrival:power_of_two")

    alone, together = run_all(study, names, 1), run_all(study, names, 2)

    assert alone == together
