"""Whether the kernel's out-of-memory killer has run: counters before and after. ORCH-3039.

The kernel tells nobody whom it killed but its log, which services may not read. It counts its
victims for the whole host and for each memory cgroup.
"""

from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class OomKills:
    """Victims so far: of this process's cgroup and those above it, and of the host; 0 if unknown.

    Attributes:
        cgroup: Of the memory cgroup in which this process and its engines run.
        host: Of the whole host, whoever they were.
    """

    cgroup: int = 0
    host: int = 0


def oom_kills(root: Path = _ROOT) -> OomKills:
    """Reads the counters. Blocks for some small reads of /proc and /sys; never raises.

    Source: Documentation/admin-guide/cgroup-v2.rst (`memory.events`, hierarchical),
    cgroup-v1/memory.rst (`memory.oom_control`), and `oom_kill` in /proc/vmstat.
    """
    host = _counter(root / "proc/vmstat", "oom_kill")
    cgroup = max((_counter(path, "oom_kill") for path in _event_files(root)), default=0)
    return OomKills(cgroup, host)


def _event_files(root: Path) -> list[Path]:
    """The counter files of the memory cgroup, by both versions of cgroups."""
    files = []
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inner = path.lstrip("/")
        if not controllers:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                files.append(root / mount / inner / "memory.events")
                # In a container the path is the host's, and the mount is the container's own.
                files.append(root / mount / "memory.events")
        elif "memory" in controllers.split(","):
            files.append(root / "sys/fs/cgroup/memory" / inner / "memory.oom_control")
            files.append(root / "sys/fs/cgroup/memory/memory.oom_control")
    return files


def _counter(path: Path, name: str) -> int:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
