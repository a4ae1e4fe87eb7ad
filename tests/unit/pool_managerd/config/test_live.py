"""Reading the configuration again from a disk that does not answer. HME-003."""

import os
import threading
from pathlib import Path

from pool_managerd.config.live import LiveConfig
from pool_managerd.config.loading import load_config
from pool_managerd.config.schema import Config
from pool_managerd.telemetry import Telemetry

WAIT_S = 20.0


async def test_a_configuration_that_cannot_be_read_in_time_changes_nothing(tmp_path: Path) -> None:
    """It is told, and the next reload counts again. A pipe stands for the disk."""
    path, pools = tmp_path / "c.toml", '[[pools]]\npool_id = "p"\nengine = { kind = "mock" }\n'
    path.write_text(pools)
    applied: list[Config] = []
    live = LiveConfig(
        load_config(path),
        lambda: load_config(path),
        lambda _before, after: applied.append(after),
        read_timeout_ms=20,
    )
    path.unlink()
    os.mkfifo(path)

    refused = await live.reload(Telemetry())
    # Lets go the thread that waits for a writer.
    os.close(os.open(path, os.O_WRONLY))
    path.unlink()
    path.write_text(f'log_level = "error"\n{pools}')
    live._read_timeout_ms = 30_000
    taken = await live.reload(Telemetry())

    assert refused.problems == ("it was not read within 20 ms: look at its disk",)
    assert (refused.outcome, taken.outcome) == ("refused", "applied")
    assert [config.log_level for config in applied] == ["error"]


async def test_whoever_asks_again_while_the_disk_hangs_sends_no_further_reader(
    tmp_path: Path,
) -> None:
    """Each would be a thread that stays for as long as the disk does."""
    path = tmp_path / "c.toml"
    path.write_text('[[pools]]\npool_id = "p"\nengine = { kind = "mock" }\n')
    config, hangs, readers = load_config(path), threading.Event(), list[int]()

    def read() -> Config:
        readers.append(len(readers))
        hangs.wait(WAIT_S)
        return config

    live = LiveConfig(config, read, lambda _before, _after: None, read_timeout_ms=20)
    try:
        outcomes = [(await live.reload(Telemetry())).outcome for _ in range(3)]
        while_it_hung = len(readers)
    finally:
        hangs.set()
    live._read_timeout_ms = 30_000

    assert (await live.reload(Telemetry())).outcome == "unchanged"
    assert (outcomes, while_it_hung, len(readers)) == (["refused"] * 3, 1, 2)


LAUNCHED = """
[[pools]]
pool_id = "p"
devices = ["0"]
[pools.engine]
kind = "openai"
flavor = "generic"
model_id = "m"
ctx_max = 512
slots = 1
[pools.engine.launch]
command = ["/usr/bin/server", "{port}"]
env = { SERVER_KEY = "a secret", THREADS = "4" }
"""


async def test_the_environment_of_an_engine_waits_for_a_restart_and_is_not_shown(
    tmp_path: Path,
) -> None:
    """It may hold a secret; which variable changed is told."""
    path = tmp_path / "c.toml"
    path.write_text(LAUNCHED)
    live = LiveConfig(load_config(path), lambda: load_config(path), lambda _before, _after: None)

    same = await live.reload(Telemetry())
    path.write_text(LAUNCHED.replace("a secret", "another").replace(', THREADS = "4"', ""))
    changed = await live.reload(Telemetry())

    assert (same.outcome, same.problems, same.waiting) == ("unchanged", (), {})
    env = "pools.p.engine.launch.env"
    assert changed.waiting == {
        f"{env}.SERVER_KEY": f'{env}.SERVER_KEY: "..." -> "..."',
        f"{env}.THREADS": f'{env}.THREADS: "..." -> unset',
    }


async def test_a_reload_that_breaks_is_told_and_ends_nothing(tmp_path: Path) -> None:
    """A bug there must not cost a host its engines."""
    path = tmp_path / "c.toml"
    path.write_text(LAUNCHED)

    def broken() -> Config:
        raise RuntimeError("a secret")

    live = LiveConfig(load_config(path), broken, lambda _before, _after: None)

    report = await live.reload(Telemetry())

    assert report.problems == ("it could not be read again: RuntimeError",)
