"""The memory that programs of this host can have: of the machine, or of a control group within it.

A service with MemoryMax=, or a container, has less than the machine: an engine that takes more is
killed. Source: Documentation/admin-guide/cgroup-v2.rst (`memory.max`, `memory.current`,
`memory.stat`) and cgroup-v1/memory.rst.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_ROOT = Path("/")
# A limit, what is used, the statistics, and what of these is cached files, which make room.
_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_STAT = "memory.stat"


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes; `free` is what programs can have without swapping."""

    total: int
    free: int


def host_memory(root: Path = _ROOT) -> HostMemory:
    """What is there, or less where a control group of this process bounds it.

    Blocks for some small reads of /proc and /sys.
    """
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in _bounds(root):
        if limit < memory.total:
            total, free = min(total, limit), min(free, max(0, limit - used))
    return HostMemory(total, free)


def _bounds(root: Path) -> Iterator[tuple[int, int]]:
    """The limits of the control groups that this process is in, and what is used of each."""
    for folder, (limit_name, used_name, cached_names) in _folders(root):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:
            counted = _counted(folder / _STAT)
            yield limit, used - sum(counted.get(name, 0) for name in cached_names)


def _folders(root: Path) -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """Of both versions, the group and those above it; a container sees its own as the topmost."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inner = PurePosixPath(path.lstrip("/"))
        groups = (inner, *inner.parents)
        if not controllers:
            yield from ((root / "sys/fs/cgroup" / group, _V2) for group in groups)
        elif "memory" in controllers.split(","):
            yield from ((root / "sys/fs/cgroup/memory" / group, _V1) for group in groups)


def _counted(path: Path) -> dict[str, int]:
    pairs = (line.split(" ", 1) for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}


def _number(path: Path) -> int | None:
    """None also for the word `max`: there is no limit."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
