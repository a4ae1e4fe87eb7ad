"""The warden where the system tells it nothing. ORCH-3203."""

import json
import subprocess
import sys
from pathlib import Path

from pool_managerd.engines import warden

WAIT_S = 20.0
BLIND = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("warden", {str(Path(warden.__file__))!r})
warden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(warden)
warden._processes = lambda: []
warden.main()
"""


def test_an_engine_ends_with_its_pool_manager_where_no_proc_tells_of_it() -> None:
    """As in a root without /proc: its process group is known without that."""
    order = {"command": ["sleep", "600"], "env": {}, "cwd": "", "stop_grace_ms": 60_000}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", BLIND], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        begun = json.loads(process.stdout.readline())
        process.stdin.close()
        try:
            status = process.wait(WAIT_S)
        finally:
            process.kill()
        ended = json.loads(process.stdout.readline())

    assert begun["pid"] > 0
    assert (status, ended) == (0, {"status": -9})
