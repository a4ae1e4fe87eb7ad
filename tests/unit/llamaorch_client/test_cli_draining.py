"""drain and reload: what may be said, and that every outcome has words."""

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from llamaorch.orchestrator.v1 import pool_admin_service_pb2
from llamaorch_client import wire_fleet
from llamaorch_client.cli import draining
from llamaorch_client.cli.arguments import parse
from llamaorch_client.model_fleet import ReloadOutcome


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("5m", 300.0), ("1h", 3600.0), ("0s", 0.0), ("24h", 86400)]
)
def test_a_deadline_has_a_unit(text: str, seconds: float) -> None:
    """Seconds, minutes or hours, at most a day."""
    assert parse(["drain", "p", "--deadline", text], {}).deadline == seconds
    assert parse(["reload", "p", "--deadline", text], {}).deadline == seconds


@pytest.mark.parametrize("text", ["5", "x", "-1s", "25h", "m", "", "nans", "infs", "1 d"])
def test_a_deadline_that_is_none_is_a_usage_error(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named before anything is sent."""
    with pytest.raises(SystemExit) as exit_:
        parse(["drain", "p", f"--deadline={text}"], {})

    assert exit_.value.code == 2
    assert "must be like 90s, 5m or 1h" in capsys.readouterr().err


def test_the_pool_that_was_meant_comes_first() -> None:
    """Whatever the case of its letters; those that are equally far in their order."""
    ids = ["box-2/gpu-1", "cpu", "gpu-b", "gpu-a"]

    assert draining.nearest("GPUa", ids)[:2] == ["gpu-a", "gpu-b"]
    assert draining.nearest("box2", ids)[0] == "box-2/gpu-1"
    assert draining.nearest("", ids) == sorted(ids)


@pytest.mark.parametrize(
    ("running", "told"),
    [
        (0, "p drains: nothing runs there, and nothing new will"),
        (1, "p drains: 1 job still runs there, and no other begins; what runs at "),
        (3, "p drains: 3 jobs still run there, and no other begins; what runs at "),
    ],
)
def test_a_drain_tells_what_runs_and_when_it_is_stopped(running: int, told: str) -> None:
    """At the deadline, by the clock of whoever reads it."""
    drain = pool_admin_service_pb2.PoolDrain(
        until=Timestamp(seconds=1_000), running_attempts=running
    )
    pool = wire_fleet.pool(pool_admin_service_pb2.Pool(pool_id="p", drain=drain))
    when = datetime.fromtimestamp(1_000, UTC).astimezone()

    said = draining._sentence(pool)

    assert said.startswith(told)
    assert said.endswith(f"at {when:%H:%M:%S} is stopped then" if running else "nothing new will")


def test_every_outcome_but_the_good_one_has_words() -> None:
    """Also those that are not known to this version."""
    assert set(draining._RELOADS) == set(ReloadOutcome) - {ReloadOutcome.DONE}
