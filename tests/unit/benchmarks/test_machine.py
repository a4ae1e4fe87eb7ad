"""What benchmarks say about the machine."""

import pytest

from benchmarks.machine import processor_ticks, run_on_machine, shares


def test_the_stolen_share_is_that_of_the_time_in_between() -> None:
    """Ticks before the run do not count, and waiting for disks is not idle."""
    before = (100, 0, 50, 1_000, 5, 0, 0, 900)
    after = (140, 5, 55, 1_020, 10, 0, 0, 925)

    assert shares(before, after) == (
        "processor time in this run: 25 % stolen by the hypervisor, 20 % idle"
    )


@pytest.mark.parametrize("after", [(), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_without_readings_nothing_is_claimed(after: tuple[int, ...]) -> None:
    """No /proc/stat, or no tick in between."""
    assert shares(after, after) == "processor time stolen in this run: not known"


def test_the_share_is_told_also_of_a_run_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason may well be that others had the processors."""

    def fails() -> None:
        with run_on_machine():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()

    first, last = capsys.readouterr().out.splitlines()
    assert "cores, load" in first
    assert last.startswith("processor time")
    assert len(processor_ticks()) in {0, 8}
