"""The core as mypyc compiles it decides as the interpreted one does. LO-207."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SEEDS = range(1, 7)
COMPILE_TIMEOUT_S = 600

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)"),
    pytest.mark.timeout(COMPILE_TIMEOUT_S),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `orchestrator_core`, its core compiled without optimisation, in less time."""
    into = tmp_path_factory.mktemp("compiled")
    arguments = [sys.executable, "ci/compile_core.py", str(into), "--copy", "--optimize", "0"]
    subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    return into


def run(folder: Path, *arguments: str) -> str:
    """Runs Python in `folder`, whose packages go before the tree's; returns its output."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}:{ROOT / 'clients/python'}"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_the_compiled_core_that_runs(compiled: Path) -> None:
    """What decides is compiled; what codecs decode is not."""
    code = (
        "from orchestrator_core.core import placement, queue, scheduler, spec\n"
        "from orchestrator_core.relay import log\n"
        "print([m.__file__.endswith('.py') for m in (placement, queue, scheduler, log, spec)])"
    )
    assert run(compiled, "-c", code).strip() == "[False, False, False, False, True]"
    assert run(ROOT, "-c", code).strip() == "[True, True, True, True, True]"
    assert len(list(compiled.glob("orchestrator_core__mypyc.*.so"))) == 1, "removed by that name"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_seed_has_the_same_history(compiled: Path, tmp_path: Path, seed: int) -> None:
    """Every event that clients, hosts and the journal saw, with its virtual instant."""
    histories = []
    for number, folder in enumerate((ROOT, compiled)):
        path = tmp_path / str(number)
        run(folder, "-m", "faults.simulation", "--seed", str(seed), "--history", str(path))
        histories.append(path.read_bytes())

    assert len(histories[0]) > 1_000
    assert histories[0] == histories[1]


@pytest.mark.parametrize("recorded_by", ["interpreted", "compiled"])
def test_either_replays_what_the_other_recorded(
    compiled: Path, tmp_path: Path, recorded_by: str
) -> None:
    """Equal decisions and equal hashes of the state, through checkpoints in the middle."""
    first, second = (ROOT, compiled) if recorded_by == "interpreted" else (compiled, ROOT)
    record = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.orchestrator_core.recorder.recordings import record\n"
        "record(7, Path(sys.argv[1]), segment_bytes=3_000)"
    )
    replay = (
        "import sys; from pathlib import Path\n"
        "from orchestrator_core.recorder.replay import replay\n"
        "from tests.unit.orchestrator_core.recorder.recordings import recordings\n"
        "print(replay(recordings(Path(sys.argv[1]))).steps)"
    )

    run(first, "-c", record, str(tmp_path))
    steps = int(run(second, "-c", replay, str(tmp_path)))

    assert steps > 100
