"""What is remembered of hosts' streams."""

import pytest

from llamaorch.pool.v1 import snapshot_pb2
from orchestrator_core.hosts import registry
from orchestrator_core.hosts.link import HostLink, LinkTerms
from orchestrator_core.hosts.registry import Hosts, ReportedFleet


def link(boot_id: str, dial_seq: int) -> HostLink:
    """A stream of one host."""
    return HostLink("host", boot_id, 1, LinkTerms(1, 1, 1, 1), dial_seq=dial_seq)


async def test_the_last_dial_of_each_run_outlives_its_stream() -> None:
    """LO-301: a late registration is compared with streams that are over."""
    hosts = Hosts()
    for boot_id, dial_seq in (("a", 1), ("a", 2), ("b", 1)):
        hosts.connect(stream := link(boot_id, dial_seq))
        hosts.disconnect(stream)

    assert (hosts.last_dial("host", "a"), hosts.last_dial("host", "b")) == (2, 1)
    assert hosts.last_dial("host", "c") == hosts.last_dial("other", "a") == 0


async def test_only_the_latest_runs_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """LO-301: hosts that start anew without end leave no more than that behind."""
    monkeypatch.setattr(registry, "DIALS_KEPT", 2)
    hosts = Hosts()
    for boot_id in ("a", "b", "a", "c"):
        hosts.connect(link(boot_id, 7))

    assert [hosts.last_dial("host", boot_id) for boot_id in "abc"] == [7, 0, 7]


async def test_of_a_host_that_is_away_no_readings_are_shown() -> None:
    """What its devices did last is not what they do: a metric would say so for a day."""
    hosts = Hosts()
    hosts.connect(stream := link("a", 1))
    hosts.reported["p"] = snapshot_pb2.PoolSnapshot(pool_id="p", host_id="host")
    fleet = ReportedFleet(hosts)

    present = [pool.pool_id for pool in fleet.pools()]
    hosts.disconnect(stream)

    assert (present, list(fleet.pools())) == (["p"], [])
