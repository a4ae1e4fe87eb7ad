"""The memory of a host, bounded by the control groups that pool-managerd is in. LO-205."""

from pathlib import Path

import psutil
import pytest

from pool_managerd.devices.host_memory import HostMemory, host_memory

MIB = 1 << 20
V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


def write(root: Path, files: dict[str, object]) -> None:
    """A root with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/system.slice/pool.service",
            f"{V2}/system.slice/pool.service/memory.max": 100 * MIB,
            f"{V2}/system.slice/pool.service/memory.current": 40 * MIB,
            f"{V2}/system.slice/pool.service/memory.stat": f"anon 1\ninactive_file {10 * MIB}",
            f"{V2}/system.slice/memory.max": "max",
            f"{V2}/system.slice/memory.current": 90 * MIB,
        },
        {
            "proc/self/cgroup": "0::/system.slice/pool.service",
            f"{V2}/system.slice/pool.service/memory.max": "max",
            f"{V2}/system.slice/memory.max": 100 * MIB,
            f"{V2}/system.slice/memory.current": 40 * MIB,
            f"{V2}/system.slice/memory.stat": f"active_file {10 * MIB}",
        },
        {
            "proc/self/cgroup": "0::/the/path/of/the/host",
            f"{V2}/memory.max": 100 * MIB,
            f"{V2}/memory.current": 30 * MIB,
        },
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/x\n0::/",
            f"{V1}/x/memory.limit_in_bytes": 100 * MIB,
            f"{V1}/x/memory.usage_in_bytes": 40 * MIB,
            f"{V1}/x/memory.stat": f"total_inactive_file {10 * MIB}",
            f"{V1}/memory.limit_in_bytes": 9223372036854771712,
            f"{V1}/memory.usage_in_bytes": 7 << 40,
        },
    ],
    ids=["service", "slice", "container", "version-1"],
)
def test_a_control_group_bounds_what_engines_can_have(
    tmp_path: Path, files: dict[str, object]
) -> None:
    """What is cached of files makes room for an engine, as on the machine as a whole."""
    write(tmp_path, files)

    assert host_memory(tmp_path) == HostMemory(100 * MIB, 70 * MIB)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/x", f"{V2}/x/memory.max": "max", f"{V2}/x/memory.current": 5},
        {"proc/self/cgroup": "0::/x", f"{V2}/x/memory.max": 1 << 60, f"{V2}/x/memory.current": 5},
        {"proc/self/cgroup": "garbage", f"{V2}/memory.max": "?", f"{V2}/memory.current": "-1"},
    ],
)
def test_without_a_bound_it_is_the_machines(tmp_path: Path, files: dict[str, object]) -> None:
    """Nor is one that is larger than the machine any."""
    write(tmp_path, files)

    found = host_memory(tmp_path)

    assert found.total == psutil.virtual_memory().total
    assert 0 < found.free <= found.total


def test_a_group_that_is_over_its_bound_has_nothing_free(tmp_path: Path) -> None:
    """No number below 0."""
    write(
        tmp_path,
        {"proc/self/cgroup": "0::/", f"{V2}/memory.max": MIB, f"{V2}/memory.current": 2 * MIB},
    )

    assert host_memory(tmp_path) == HostMemory(MIB, 0)
