"""Runs one engine and outlives it by moments: whatever happens, no process of it stays behind.

`python -I -S warden.py`, one for each launched engine. It is the parent of the engine and, as a
"child subreaper" of Linux, of everything that the engine starts and abandons: no descendant can
leave it. It knows that the pool manager is gone when standard input ends, which the kernel brings
about however a process dies; then it kills all of them at once. A signal on the parent's death
would not do: it reaches children alone, and is sent when the parent's *thread* ends.

Protocol: one JSON line (`Order`) comes on standard input, which stays open. Answers on standard
output are JSON lines: `{"pid": n}` or `{"error": "..."}` at once, and at the end
`{"status": code}`, negative for a signal. A line "stop" on standard input is the order to stop:
SIGTERM to the engine's group, and SIGKILL to whatever lives after the grace. The end of standard
input is the order to kill. What the engine writes goes to standard error.

Only the standard library, without `site`: it starts in milliseconds and takes a few megabytes.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STDIN = 0
_MAX_ORDER_BYTES = 1 << 20
_FIRST_LOOK_S, _LAST_LOOK_S = 0.002, 0.1


def main() -> None:
    """Carries out one order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # An engine's pipe may be the first to break when the pool manager dies.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    line = _read_line()
    if not line:
        return
    order = json.loads(line)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake = _wake_on_child()
    try:
        engine = _start(order)
    except OSError as error:
        what = error.filename or order["command"][0]
        _tell({"error": f"cannot start {what}: {error.strerror or error}"})
        return
    _tell({"pid": engine.pid})
    told = False
    try:
        _watch(engine, wake, order["stop_grace_ms"] / 1000)
        if engine.poll() is not None:
            # At once: whoever waits for the news need not wait for the engine's heirs.
            _tell({"status": engine.returncode})
            told = True
    finally:
        _kill_all(engine.pid)
    if not told:
        _tell({"status": engine.wait()})


def _read_line() -> bytes:
    """The order, or nothing when the pool manager is gone already. Reads no byte beyond it."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _MAX_ORDER_BYTES:
        data = os.read(_STDIN, 1)
        if not data:
            return b""
        line += data
    return bytes(line)


def _wake_on_child() -> int:
    """A descriptor that is readable after a child has ended."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    return reader


def _start(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    # Its own environment is the engine's already: whoever started it chose what is passed on.
    env = {**os.environ, **order["env"]}
    return subprocess.Popen(  # noqa: S603 - the operator's own command, without a shell
        order["command"],
        env=env,
        cwd=order["cwd"] or None,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        stderr=sys.stderr.fileno(),
        start_new_session=True,
        preexec_fn=_in_child,  # noqa: PLW1509 - this process has one thread
    )


def _in_child() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        # If the warden itself is killed, the engine goes with it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(engine: subprocess.Popen[bytes], wake: int, grace_s: float) -> None:
    """Returns once the engine has ended, is to be killed, or its grace is over."""
    deadline_s: float | None = None
    while engine.poll() is None:
        left_s = None if deadline_s is None else deadline_s - time.monotonic()
        if left_s is not None and left_s <= 0:
            return
        ready, _, _ = select.select([_STDIN, wake], [], [], left_s)
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            _reap_adopted(engine.pid)
        if _STDIN in ready:
            if not os.read(_STDIN, 4096):
                return
            if deadline_s is None:
                deadline_s = time.monotonic() + grace_s
                _signal_group(engine.pid, signal.SIGTERM)


def _reap_adopted(engine_pid: int) -> None:
    """Takes note of ended processes that the engine had abandoned."""
    for pid in _children(os.getpid()):
        if pid != engine_pid:
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)


def _kill_all(engine_pid: int) -> None:
    """Kills every descendant; returns when none is left.

    A process that forks while it is looked for is found in the next round: its parent is dead by
    then, so that the child is this process's own.
    """
    # Of its group also where /proc does not tell who is there.
    _signal_group(engine_pid, signal.SIGKILL)
    if sys.platform != "linux":
        return
    look_s = _FIRST_LOOK_S
    while True:
        for pid in _descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        _reap_adopted(engine_pid)
        if not _others_live(engine_pid):
            return
        time.sleep(look_s)
        look_s = min(2 * look_s, _LAST_LOOK_S)


def _others_live(engine_pid: int) -> bool:
    return any(pid != engine_pid or not _ended(pid) for pid in _descendants(os.getpid()))


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, number)


def _descendants(root: int) -> list[int]:
    """Process ids below `root`, parents first. One pass over /proc."""
    below: dict[int, list[int]] = {}
    for entry in _processes():
        if entry.isdigit():
            below.setdefault(_parent(entry), []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(below.get(pid, ()))
    return found[1:]


def _processes() -> list[str]:
    try:
        return os.listdir("/proc")  # noqa: PTH208 - pathlib would double the start
    except OSError:
        # Without it, the engine's process group is all that is known of its heirs.
        return []


def _children(root: int) -> list[int]:
    return [pid for pid in _descendants(root) if _parent(str(pid)) == root]


def _parent(entry: str) -> int:
    fields = _stat(entry)
    return int(fields[1]) if fields else -1


def _ended(pid: int) -> bool:
    fields = _stat(str(pid))
    return not fields or fields[0] == b"Z"


def _stat(entry: str) -> list[bytes]:
    """State, parent, ...: what follows the name, which may hold anything. Source: proc_stat(5)."""
    try:
        with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123 - as above
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _tell(report: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    main()
