"""What a benchmark says about the machine: without it, its figures cannot be judged."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

_STAT = Path("/proc/stat")
# Columns of the line "cpu": user, nice, system, idle, iowait, irq, softirq, steal. What guests took
# follows, and is part of user and nice. Source: proc_stat(5).
_COLUMNS, _IDLE, _STEAL = 8, 3, 7


def machine() -> str:
    """Processor, cores, load over 1, 5 and 15 minutes, and Python, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.processor() or platform.machine())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model} ({platform.machine()}), {os.cpu_count()} cores, load {load}; "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


@contextlib.contextmanager
def run_on_machine() -> Iterator[None]:
    """Prints the machine before a run, and after it what was left of the processors' time."""
    print(machine(), flush=True)
    before = processor_ticks()
    try:
        yield
    finally:
        print(shares(before, processor_ticks()), flush=True)


def processor_ticks() -> tuple[int, ...]:
    """Ticks that all processors spent so far, by column; empty where there is no /proc/stat."""
    try:
        first = _STAT.read_text().partition("\n")[0]
    except OSError:
        return ()
    return tuple(map(int, first.split()[1 : 1 + _COLUMNS]))


def shares(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """How much of the processors' time the hypervisor stole between two readings, in words."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    if len(spent) < _COLUMNS or sum(spent) <= 0:
        return "processor time stolen in this run: not known"
    stolen, idle = (100 * spent[column] / sum(spent) for column in (_STEAL, _IDLE))
    return f"processor time in this run: {stolen:.0f} % stolen by the hypervisor, {idle:.0f} % idle"
