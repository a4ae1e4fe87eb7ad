"""Engines that are launched: their life, their death, and that nothing of them stays.

ORCH-3200, ORCH-3203.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from pool_managerd.config.schema import PoolTable
from pool_managerd.engines import launched as launched_module
from pool_managerd.engines.launched import LaunchedEngine, LaunchSpec, filled
from pool_managerd.engines.port import Ended, Engine, Failed, Failure, Finished, Piece, PreloadError
from pool_managerd.factory import make_engine
from tests.unit.pool_managerd.engines.marked import (
    WAIT_S,
    Marked,
    failure_of,
    launched,
    request,
    table,
)

PARENT = """
import asyncio, sys
from pool_managerd.config.schema import PoolTable
from pool_managerd.factory import make_engine

async def main():
    engine = make_engine(PoolTable.model_validate_json(sys.argv[1]), "")
    await engine.start()
    print("ready", flush=True)
    await engine.wait_exit()

asyncio.run(main())
"""


async def test_it_serves_through_its_adapter_and_leaves_nothing(marked: Marked) -> None:
    """Port and key are chosen, a generation runs, and SIGTERM ends it and what it abandoned."""
    engine = launched(marked, "--slots", "2", "--helpers", "1")

    info = await engine.start()
    events = [event async for event in engine.generate(request())]
    healthy = await engine.healthy()
    alive = len(marked.alive())
    await engine.stop()

    assert (info.slots_total, info.engine_version, healthy) == (2, "paced-1", True)
    assert [type(event) for event in events] == [Piece, Piece, Piece, Finished]
    assert alive == 2
    assert marked.alive() == []
    ended = await engine.wait_exit()
    assert (ended.failure, "SIGTERM" in ended.message) == (Failure.ENGINE_DIED, True)


async def test_who_minds_no_sigterm_is_killed_after_the_grace(marked: Marked) -> None:
    """Neither the engine nor its abandoned heirs outlive the grace."""
    engine = launched(marked, "--helpers", "2", "--stubborn", stop_grace_ms=50)
    await engine.start()

    async with asyncio.timeout(WAIT_S):
        await engine.stop()

    assert marked.alive() == []
    assert "SIGKILL" in (await engine.wait_exit()).message


async def test_a_stop_that_is_cancelled_kills_at_once(marked: Marked) -> None:
    """Whoever bounds the stop does not wait for a grace of an hour."""
    engine = launched(marked, "--helpers", "1", "--stubborn", stop_grace_ms=3_600_000)
    await engine.start()
    stopping = asyncio.create_task(engine.stop())
    await asyncio.wait([stopping], timeout=0.05)

    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)

    async with asyncio.timeout(WAIT_S):
        await engine.stop()
    assert marked.alive() == []
    assert "SIGKILL" in (await engine.wait_exit()).message


class Clinging:
    """An adapter that never lets go."""

    def __init__(self, adapter: Engine) -> None:
        self.start = adapter.start
        self.adapter = adapter

    async def stop(self) -> None:
        """Hangs, and leaves nothing open for the test."""
        await self.adapter.stop()
        await asyncio.sleep(3_600)


async def test_an_adapter_that_hangs_does_not_keep_its_engine_alive(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM comes though nobody has detached."""
    monkeypatch.setattr(launched_module, "_DETACH_TIMEOUT_S", 0.01)
    plain = launched(marked)
    engine = LaunchedEngine(plain._spec, lambda values: Clinging(plain._attach(values)))  # type: ignore[arg-type,return-value]

    await engine.start()
    async with asyncio.timeout(WAIT_S):
        await engine.stop()

    assert marked.alive() == []
    assert "SIGTERM" in (await engine.wait_exit()).message


@pytest.mark.parametrize("victim", ["engine", "warden"])
async def test_an_engine_that_is_killed_is_noticed_with_all_it_started(
    marked: Marked, victim: str
) -> None:
    """The end is told, an open generation learns of it, and no helper stays. ORCH-3038."""
    # Helpers that live in sessions of their own are out of reach once nobody is their reaper.
    helpers = "1" if victim == "engine" else "0"
    engine = launched(marked, "--helpers", helpers, "--rate", "20")
    await engine.start()
    events = engine.generate(request(tokens=1_000))
    assert isinstance(await anext(events), Piece)
    assert engine.pid is not None

    pid = engine.pid if victim == "engine" else psutil.Process(engine.pid).ppid()
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(WAIT_S):
        ended = await engine.wait_exit()
        last = [event async for event in events][-1]
        await engine.confirm_idle("r-1", 10_000)
    await marked.gone()
    await engine.stop()

    assert isinstance(ended, Ended)
    assert "SIGKILL" in ended.message
    assert isinstance(last, Failed)
    assert last.failure is Failure.ENGINE_DIED


@pytest.mark.parametrize("mood", [[], ["--stubborn"]])
async def test_nothing_outlives_a_killed_pool_manager(marked: Marked, mood: list[str]) -> None:
    """`kill -9` of the parent ends the engine and helpers that had left it. ORCH-3200."""
    text = table(marked, "--helpers", "2", *mood).model_dump_json()
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, text, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"ready\n"
    assert len(marked.alive()) == 3

    parent.kill()
    await parent.wait()

    await marked.gone()


async def test_only_the_pools_devices_are_visible(marked: Marked) -> None:
    """CUDA_VISIBLE_DEVICES names the mask; the processor is no such device. ORCH-3011."""
    program = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES')); raise SystemExit(1)"
    seen = []
    for devices in (["GPU-1", "GPU-2"], ["cpu"]):
        engine = launched(marked, command=[sys.executable, "-c", program], devices=devices)
        seen.append(str(await failure_of(engine)))

    assert "(GPU-1,GPU-2)" in seen[0]
    assert "(None)" in seen[1]


async def test_no_process_of_an_engine_sees_the_keys_of_other_pools(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warden and engine have the usual variables and those that are named. ORCH-3030."""
    for name in ("HF_TOKEN", "OTHER_API_KEY", "NVIDIA_API_KEY", "WANTED_API_KEY"):
        monkeypatch.setenv(name, "secret")
    engine = launched(marked, pass_env=["WANTED_API_KEY"])

    await engine.start()
    assert engine.pid is not None
    process = psutil.Process(engine.pid)
    seen = [process.environ(), process.parents()[0].environ()]
    await engine.stop()

    for environ in seen:
        assert [name for name in environ if environ[name] == "secret"] == ["WANTED_API_KEY"]
        assert environ["PATH"] == os.environ["PATH"]


async def test_another_model_is_loaded_by_reference_where_the_command_takes_one(
    marked: Marked,
) -> None:
    """{model_path} makes a launched server reloadable; without it a reference is refused."""
    program = "import sys; print('model', sys.argv[1]); raise SystemExit(1)"
    command = [sys.executable, "-c", program, "{model_path}"]

    pool = table(marked, command=command, model_path="/models/a.gguf")
    engine = make_engine(pool, "file:/models/b.gguf")

    assert "model /models/b.gguf" in str(await failure_of(engine))
    with pytest.raises(PreloadError, match=r"has no \{model_path\}"):
        make_engine(table(marked), "file:/models/b.gguf")
    with pytest.raises(PreloadError, match="must not begin with a hyphen"):
        make_engine(pool, "file:--trust-remote-code")


async def test_a_server_that_is_launched_again_is_the_same_replica(marked: Marked) -> None:
    """Its port is another one; attempts go on there all the same, and its speed stays known."""
    digests = []
    for pool_id in ("p", "p", "q"):
        pool = table(marked).model_copy(update={"pool_id": pool_id})
        engine = make_engine(pool, "", host_id="h")
        digests.append((await engine.start()).model_digest)
        await engine.stop()

    assert digests[0] == digests[1] != digests[2]
    assert digests[0].startswith("unverified:")


async def test_settings_of_the_pool_stand_in_the_command(marked: Marked) -> None:
    """What the memory is judged by is what the server is told, said once."""
    program = "import sys; print(*sys.argv[1:]); raise SystemExit(1)"
    names = ("slots", "ctx_per_slot", "ctx_total", "gpu_layers", "kv_type", "tensor_split")
    words = [f"{{{name}}}" for name in (*names, "device_count", "devices")]
    engine = {
        "kind": "llama_server",
        "model_id": "m",
        "slots": 3,
        "ctx_per_slot": 512,
        "kv_type": "q8_0",
        "launch": {"command": [sys.executable, "-c", program, *words]},
    }
    two = {"devices": ["GPU-1", "MIG-2"], "tensor_split": [2, 1]}
    pool = PoolTable.model_validate({"pool_id": "p", **two, "engine": engine})

    said = str(await failure_of(make_engine(pool, "")))

    assert "(3 512 1536 10000 q8_0 2,1 2 GPU-1,MIG-2)" in said


def test_placeholders_are_filled_and_other_braces_stay() -> None:
    """JSON on a command line is left alone."""
    assert filled('{"a": {port}}', {"port": "1"}) == '{"a": 1}'


def test_a_value_is_never_filled_itself() -> None:
    """A model that is named after the placeholder of a key must not show the key in /proc."""
    values = {"model_path": "{api_key}/{port}", "port": "1", "api_key": "secret"}

    assert filled("{model_path}:{port}", values) == "{api_key}/{port}:1"


def test_a_launch_without_a_bound_is_refused() -> None:
    """Every wait has an end."""
    make: list[Callable[[], LaunchSpec]] = [
        lambda: LaunchSpec(command=()),
        lambda: LaunchSpec(command=("x",), stop_grace_ms=0),
    ]
    for one in make:
        with pytest.raises(ValueError, match="must"):
            one()
