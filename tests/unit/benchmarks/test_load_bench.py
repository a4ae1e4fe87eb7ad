"""The benchmarks of the data plane work: real processes, a few streams, a fraction of a second."""

import pytest

from benchmarks import enqueue, relay, soak
from benchmarks.load.hosts import age_s, stamp
from benchmarks.relay import Figures, Mark


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_relay_run_compares_both_ways_of_following(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every token that hosts sent was read, in order and with its digest, else it raises."""
    assert relay.main(["--quick"]) == 0

    printed = capsys.readouterr().out
    rows = [line.split()[:3] for line in printed.splitlines() if " 8 " in line[:20]]
    assert [row[-1] for row in rows if row[0] == "Exchange"] == ["bare", "orchestratord"]
    assert sum(row[0] == "per" for row in rows) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_quick_enqueue_run_judges_every_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """Latency, two rates, two kinds of memory."""
    assert enqueue.main(["--quick"]) == 0

    printed = capsys.readouterr().out
    assert printed.count("PASS") + printed.count("FAIL") == 5


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("more", [[], ["--calls"]], ids=["exchange", "calls"])
def test_short_soak_finds_no_violation(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    """What was sent was read, and memory was looked at."""
    assert soak.main(["--seconds", "1", "--streams", "16", *more]) == 0

    printed = capsys.readouterr().out
    assert "violations: 0" in printed
    assert "MiB a minute" in printed


def test_windows_that_catch_up_do_not_count() -> None:
    """A window in which twice as much was read as was made is no steady one."""
    marks = [
        Mark(at_s=float(at), cpu_s=cpu, tokens=tokens, batches=tokens, p50_ms=1.0, p99_ms=2.0)
        for at, cpu, tokens in ((0, 0.0, 0), (1, 0.1, 1_000), (2, 0.15, 3_000), (3, 0.27, 4_000))
    ]

    figures = Figures.of(marks, 0, 1_000.0)

    assert figures.steady == 2
    assert figures.cpu_us == pytest.approx([100.0, 120.0])


def test_age_of_a_piece_survives_the_wrap_of_its_stamp() -> None:
    """Stamps are modulo 268 s."""
    for then_s in (0.0, 268.4, 1_000_000.0):
        assert age_s(stamp(then_s), then_s + 0.25) == pytest.approx(0.25, abs=1e-4)
