"""The kernel's out-of-memory killer, by its counters. ORCH-3039."""

import signal
from pathlib import Path

import pytest

from pool_managerd.engines.exit_news import LastWords, verdict
from pool_managerd.engines.host_memory import OomKills, oom_kills
from pool_managerd.engines.port import Failure


def write(root: Path, files: dict[str, str]) -> None:
    """A root with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.events": "oom 9\noom_kill 3\n"},
        {"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/memory.events": "oom_kill 3\n"},
        {
            "proc/self/cgroup": "4:cpu,memory:/x\n0::/\n",
            "sys/fs/cgroup/memory/x/memory.oom_control": "under_oom 0\noom_kill 3\n",
        },
    ],
)
def test_both_versions_of_cgroups_are_read(tmp_path: Path, files: dict[str, str]) -> None:
    """Version 2, version 2 in a container, and version 1."""
    write(tmp_path, {**files, "proc/vmstat": "pgfault 12\noom_kill 7\n"})

    assert oom_kills(tmp_path) == OomKills(cgroup=3, host=7)


def test_a_machine_without_counters_is_no_error(tmp_path: Path) -> None:
    """What is not known is 0, before and after."""
    assert oom_kills(tmp_path) == OomKills(0, 0)


@pytest.mark.parametrize(
    ("status", "now", "failure", "said"),
    [
        (-signal.SIGKILL, OomKills(1, 1), Failure.HOST_OUT_OF_MEMORY, "the kernel ended it"),
        (137, OomKills(1, 1), Failure.HOST_OUT_OF_MEMORY, "the kernel ended it"),
        (-signal.SIGKILL, OomKills(0, 1), Failure.HOST_OUT_OF_MEMORY, "ended somebody"),
        (-signal.SIGKILL, OomKills(0, 0), Failure.ENGINE_DIED, "it ended"),
        (-signal.SIGSEGV, OomKills(1, 1), Failure.ENGINE_DIED, "it ended"),
        (None, OomKills(1, 1), Failure.ENGINE_DIED, "it ended"),
    ],
    ids=["cgroup", "below-a-shell", "host", "no-victim", "another-signal", "our-own"],
)
def test_a_sigkill_while_the_killer_ran_is_the_hosts_memory(
    status: int | None, now: OomKills, failure: Failure, said: str
) -> None:
    """Neither another signal, nor our own, nor a SIGKILL without a victim, is taken for it."""
    words = LastWords(sentence="it ended", status=status, lines=("loading",), before=OomKills())

    ended = verdict(words, now)

    assert ended.failure is failure
    assert said in ended.message
    assert ended.message.endswith("it ended (loading)")
