"""Engines that do not come up: what is told of them, and what is never quoted. ORCH-3200."""

import asyncio
import sys
from pathlib import Path

import pytest

from pool_managerd.engines import launched as launched_module
from pool_managerd.engines.launched import PORT_TRIES
from pool_managerd.engines.port import Failure
from tests.unit.pool_managerd.engines.marked import SERVER, WAIT_S, Marked, failure_of, launched

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


def test_a_port_that_another_engine_was_given_is_not_given_again() -> None:
    """It may be slow to open it, and its pool would take the other one's server for its own."""
    asked = list[str]()

    class TheFirstFour:
        def __contains__(self, port: object) -> bool:
            asked.append(str(port))
            return len(asked) <= 4

    ports = launched_module.free_ports(TheFirstFour())

    assert sorted(ports) == ["port", "port_2", "port_3"]
    assert list(ports.values()) == asked[4:]
    assert len(set(asked)) == 7


async def test_an_engine_has_its_ports_for_itself_until_it_is_gone(marked: Marked) -> None:
    """Also while it does not listen yet."""
    engine = launched(marked)
    await engine.start()
    given = set(launched_module._GIVEN)
    await engine.stop()

    assert len(given) == len(launched_module.PORTS)
    assert not launched_module._GIVEN


async def test_an_engine_that_ends_for_another_reason_is_run_once(
    marked: Marked, tmp_path: Path
) -> None:
    """Only other ports can help, and only one that lost its own."""
    program = f"open({str(tmp_path / 'runs')!r}, 'a').write('run '); raise SystemExit('no model')"
    engine = launched(marked, command=[sys.executable, "-c", program, "{port}"])

    assert "no model" in str(await failure_of(engine))
    assert (tmp_path / "runs").read_text() == "run "


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
