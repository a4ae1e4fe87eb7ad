"""Engines that are launched: their life, their death, and that nothing of them stays.

ORCH-3200, ORCH-3203.
"""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from pool_managerd.config.schema import PoolTable
from pool_managerd.engines import launched as launched_module
from pool_managerd.engines.launched import PORT_TRIES, LaunchedEngine, LaunchSpec, filled
from pool_managerd.engines.port import (
    Ended,
    Engine,
    Failed,
    Failure,
    Finished,
    GenerationRequest,
    Piece,
    PreloadError,
    SamplingParams,
)
from pool_managerd.factory import make_engine

SERVER = str(Path(__file__).parents[4] / "benchmarks" / "load" / "llama_engine.py")
WAIT_S = 20.0
MARK = "LLAMAORCH_TEST_MARK"
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


class Marked:
    """All processes that carry one mark in their environment."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def alive(self) -> list[psutil.Process]:
        """Those that live now; one that became a zombie is dead."""
        return [process for process in psutil.process_iter() if self._has(process)]

    def _has(self, process: psutil.Process) -> bool:
        try:
            return (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(MARK) == self.mark
            )
        except psutil.Error:
            return False

    async def gone(self) -> None:
        """Waits until none lives."""
        async with asyncio.timeout(WAIT_S):
            while self.alive():  # noqa: ASYNC110 - nobody tells of the end of foreign processes
                await asyncio.sleep(0.02)


@pytest.fixture
async def marked() -> AsyncIterator[Marked]:
    """A mark; whoever still carries it after the test is killed."""
    marked = Marked()
    yield marked
    for process in marked.alive():
        process.kill()


def table(marked: Marked, *arguments: str, **launch: object) -> PoolTable:
    """A pool whose server is launched."""
    return PoolTable.model_validate(
        {
            "pool_id": "p",
            "devices": launch.pop("devices", []),
            "engine": {
                "kind": "llama_server",
                "model_id": "m",
                "model_path": launch.pop("model_path", ""),
                "launch": {
                    "command": [sys.executable, "-S", SERVER, "--port", "{port}", *arguments],
                    "env": {MARK: marked.mark, "LLAMA_API_KEY": "{api_key}"},
                    "attach_timeout_ms": 2_000,
                    **launch,
                },
            },
        }
    )


def launched(marked: Marked, *arguments: str, **launch: object) -> LaunchedEngine:
    """An engine that is not started."""
    engine = make_engine(table(marked, *arguments, **launch), "")
    assert isinstance(engine, LaunchedEngine)
    return engine


def request(prompt: str = "hello", tokens: int = 3) -> GenerationRequest:
    """A short generation."""
    return GenerationRequest("r-1", prompt, SamplingParams(seed=1, max_tokens=tokens))


async def failure_of(engine: Engine) -> PreloadError:
    """The failure of a start."""
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(PreloadError) as raised:
            await engine.start()
    return raised.value


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


LOSES_ITS_PORT = """
import os, pathlib, sys
runs, limit, *command = sys.argv[1:]
path = pathlib.Path(runs)
ports = path.read_text().split() if path.exists() else []
path.write_text(" ".join([*ports, command[-1]]))
if len(ports) < int(limit):
    sys.exit("main: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: " + command[-1])
os.execv(command[0], command)
"""


@pytest.mark.parametrize(("losses", "serves"), [(2, True), (3, False)])
async def test_an_engine_whose_port_was_taken_is_run_again_with_another(
    marked: Marked, tmp_path: Path, losses: int, serves: bool
) -> None:
    """A few times within one start, which is not a failure of the pool; then it is one."""
    runs = tmp_path / "runs"
    server = [sys.executable, "-S", SERVER, "--port", "{port}"]
    engine = launched(
        marked, command=[sys.executable, "-c", LOSES_ITS_PORT, str(runs), str(losses), *server]
    )

    if serves:
        assert (await engine.start()).engine_version == "paced-1"
        await engine.stop()
    else:
        assert "couldn't bind HTTP server socket" in str(await failure_of(engine))

    ports = runs.read_text().split()
    assert len(ports) == PORT_TRIES
    assert len(set(ports)) == PORT_TRIES
    assert marked.alive() == []


async def test_an_engine_that_ends_for_another_reason_is_run_once(
    marked: Marked, tmp_path: Path
) -> None:
    """Only other ports can help, and only one that lost its own."""
    program = f"open({str(tmp_path / 'runs')!r}, 'a').write('run '); raise SystemExit('no model')"
    engine = launched(marked, command=[sys.executable, "-c", program, "{port}"])

    assert "no model" in str(await failure_of(engine))
    assert (tmp_path / "runs").read_text() == "run "


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


async def test_memory_of_the_device_is_named_by_the_engines_last_words(marked: Marked) -> None:
    """A start that fails for lack of VRAM says so, with the engine's own line. ORCH-3039."""
    words = "ggml_cuda: cudaMalloc failed: out of memory"
    engine = launched(marked, "--say", words, "--exit", "1")

    error = await failure_of(engine)

    assert error.failure is Failure.DEVICE_OUT_OF_MEMORY
    assert str(error).startswith("device memory ran out: ")
    assert words in str(error)
    assert "exited with status 1" in str(error)


async def test_a_key_is_not_quoted_from_the_log(marked: Marked) -> None:
    """An engine that prints its settings gives no secret away. ORCH-3300."""
    engine = launched(marked, "--say", "started with api key {api_key}", "--exit", "3")

    error = await failure_of(engine)

    assert "status 3" in str(error)
    assert "started with api key ***" in str(error)


async def test_what_it_wrote_last_is_told_of_one_that_is_given_up_at_its_start(
    marked: Marked,
) -> None:
    """Whoever bounds the start asks for it, and it gives no secret away."""
    engine = launched(marked, command=["sh", "-c", "echo loading with {api_key} >&2; sleep 60"])
    start = asyncio.create_task(engine.start())
    async with asyncio.timeout(WAIT_S):
        while not engine.last_words():  # noqa: ASYNC110 - nothing tells of a line
            await asyncio.sleep(0.01)

    start.cancel()
    await asyncio.wait([start])

    assert engine.last_words() == "loading with ***"


async def test_a_secret_that_was_passed_on_is_not_quoted_either(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the engine calls it. ORCH-3300."""
    monkeypatch.setenv("REGISTRY_TOKEN", "swordfish")
    words = "logging in with swordfish"
    engine = launched(marked, "--say", words, "--exit", "3", pass_env=["REGISTRY_TOKEN"])

    assert "logging in with ***" in str(await failure_of(engine))


async def test_a_program_that_is_not_there_is_named(marked: Marked) -> None:
    """The sentence names what could not be started."""
    engine = launched(marked, command=["/absent/llama-server", "--port", "{port}"])

    assert "/absent/llama-server: No such file" in str(await failure_of(engine))


async def test_a_server_that_never_makes_sense_ends_the_start(marked: Marked) -> None:
    """Somebody who accepts connections but is no llama-server is given up, and is stopped."""
    program = "import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.BaseHTTPRequestHandler).serve_forever()"  # noqa: E501 - one argument
    engine = launched(marked, command=[sys.executable, "-c", program], attach_timeout_ms=200)

    assert "127.0.0.1" in str(await failure_of(engine))
    assert marked.alive() == []


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
