"""ReloadConfig: all of a file or nothing of it, told key by key, while streams run. HME-003."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from llamaorch.orchestrator.v1 import config_service_pb2 as pb
from orchestrator_core.config.schema import Config
from orchestrator_core.recorder.recorder import recordings
from orchestrator_core.recorder.replay import replay
from tests.integration.orchestrator.calls import (
    WAIT_S,
    all_events,
    enqueue,
    follow,
    ready_host,
    text,
)
from tests.integration.orchestrator.conftest import StartOrchestrator
from tests.integration.orchestrator.reloaded import BASE, Reloadable, reloadable


def told(changes: "list[pb.ConfigChange]") -> list[tuple[str, str, str]]:
    """Keys with the values before and after."""
    return [(each.key, each.before, each.after) for each in changes]


async def capacity(server: Reloadable) -> str:
    """The setting that most of these tests change, as it is in force."""
    answer = await server.config.GetConfig(pb.GetConfigRequest())
    assert answer.config_file == str(server.file)
    (found,) = (each for each in answer.settings if each.key == "queue.capacity")
    assert found.reloadable
    return found.value


async def test_each_key_is_told_and_what_is_safe_is_in_force(tmp_path: Path) -> None:
    """Applied, waiting for a restart, and the rest; the same goes to the log."""
    async with reloadable(tmp_path) as server:
        with capture_logs() as lines:
            answer = await server.change(
                'listen = "127.0.0.1:7999"\n[store]\nkind = "memory"\n[queue]\ncapacity = 7\n'
                "[throttle.identities.bob]\nrequests_per_min = 5\n"
            )

        assert answer.config_file == str(server.file)
        assert told(list(answer.applied)) == [
            ("queue.capacity", "100", "7"),
            ("throttle.identities.bob.requests_per_min", "", "5"),
        ]
        assert told(list(answer.needs_restart)) == [("listen", '"127.0.0.1:0"', '"127.0.0.1:7999"')]
        assert answer.unchanged > 50
        assert await capacity(server) == "7"
        assert server.server.runtime.core.config.queue_capacity == 7
        (line,) = (each for each in lines if each["event"] == "config_reload")
        assert line["changed"][0] == "queue.capacity: 100 -> 7"
        assert line["human"].endswith("2 settings changed; restart orchestratord for listen.")
        again = await server.config.ReloadConfig(pb.ReloadConfigRequest())
        assert not again.applied
        assert told(list(again.needs_restart)) == told(list(answer.needs_restart))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("[queue]\ncapacity = 0\n", "queue.capacity: input should be greater than or equal to 1"),
        ("[queue]\ncapacityy = 7\n", "queue.capacityy: unknown key; did you mean queue.capacity?"),
        ("[queue]\ncapacity = 7\n[adm", "not valid TOML"),
        (
            "[queue]\ncapacity = 7\nretry_after_max_ms = 99\n",
            "retry_after_min_ms: 100 is more",
        ),
        ("\udcff", "not valid TOML"),
        ("x = " + "[" * 100_000, "not valid TOML"),
        ("x = " + "9" * 100_000, "not valid TOML"),
    ],
)
async def test_a_mistake_changes_nothing_and_is_named(
    wrong: str, says: str, tmp_path: Path
) -> None:
    """Also where another key of the file is right."""
    async with reloadable(tmp_path) as server:
        server.file.write_bytes(
            (BASE + "[jobs]\nattempts_max = 2\n" + wrong).encode("utf-8", "surrogateescape")
        )

        answer = await server.config.ReloadConfig(pb.ReloadConfigRequest())

        assert any(says in problem for problem in answer.problems)
        assert not answer.applied
        assert server.server.runtime.core.config.attempts_max == 3
        assert await capacity(server) == "100"
        await server.apply(BASE + "[queue]\ncapacity = 7\n")


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    """It does not mean that the defaults hold."""
    async with reloadable(tmp_path, BASE + "[queue]\ncapacity = 7\n") as server:
        server.file.unlink()

        answer = await server.config.ReloadConfig(pb.ReloadConfigRequest())

        assert answer.problems == [f"{server.file}: No such file or directory"]
        assert await capacity(server) == "7"


async def test_what_is_safe_has_to_go_with_what_needs_a_restart(tmp_path: Path) -> None:
    """A pair that would be right after a restart is not applied by half."""
    async with reloadable(tmp_path) as server:
        answer = await server.change(
            BASE + "[placement]\nstale_after_ms = 600\n[pools]\nreport_interval_ms = 200\n"
        )

        assert "placement.stale_after_ms: 600 is less than twice" in answer.problems[0]
        assert "restart" in answer.problems[1]
        assert server.server.runtime.core.config.stale_after_ms == 5_000


async def test_whether_tokens_are_asked_for_takes_a_restart(tmp_path: Path) -> None:
    """The first token of a server locks nobody out while he looks away, and none opens it."""
    token = '[auth.tokens.ann]\nrole = "admin"\nsha256 = "' + "ab" * 32 + '"\n'
    async with reloadable(tmp_path) as server:
        answer = await server.change(BASE + token)

        waiting = {key: after for key, _, after in told(list(answer.needs_restart))}
        assert waiting["auth.tokens.ann.role"] == '"admin"'
        assert waiting["auth.tokens.ann.sha256"] == '"ababab..."'
        assert not answer.applied
        assert await capacity(server) == "100"


async def test_a_dry_run_only_tells(tmp_path: Path) -> None:
    """The same answer, and nothing in force, in the log or counted."""
    async with reloadable(tmp_path) as server:
        with capture_logs() as lines:
            answer = await server.change(BASE + "[queue]\ncapacity = 7\n", dry_run=True)

        assert told(list(answer.applied)) == [("queue.capacity", "100", "7")]
        assert await capacity(server) == "100"
        assert not [each for each in lines if each["event"] == "config_reload"]


async def test_reloads_at_once_follow_one_another(tmp_path: Path) -> None:
    """One of them finds the change, the others find it in force."""
    async with reloadable(tmp_path) as server:
        server.file.write_text(BASE + "[queue]\ncapacity = 7\n", encoding="utf-8")

        answers = await asyncio.gather(
            *(server.config.ReloadConfig(pb.ReloadConfigRequest()) for _ in range(8))
        )

        assert sorted(len(each.applied) for each in answers) == [0] * 7 + [1]


async def test_streams_go_on_and_a_replay_comes_to_the_same(tmp_path: Path) -> None:
    """LO-207, ORCH-3026: jobs that run and wait while everything is changed around them."""
    journal = f'listen = "127.0.0.1:0"\n[store]\npath = "{tmp_path}/journal.db"\n'
    async with reloadable(tmp_path, journal) as server:
        host = await ready_host(server)
        first = await enqueue(server)
        events = follow(server, first.job_id)
        start = await host.start()
        await host.started(start.handle)
        await host.tokens(start.handle, "one ")
        waiting = [(await enqueue(server)).job_id for _ in range(3)]

        for number in range(5):
            await server.apply(
                f"{journal}[queue]\ncapacity = {number + 1}\ntoken_fairness = "
                f"{str(number % 2 == 0).lower()}\n[jobs]\nretention_ms = {90_000 + number}\n"
            )
            await host.tokens(start.handle, f"{number} ")
        await host.finish(start.handle)
        seen = [event async for event in events]
        for _ in waiting:
            start = await host.start()
            await host.started(start.handle)
            await host.tokens(start.handle, "done")
            await host.finish(start.handle)
        others = [await all_events(server, job_id) for job_id in waiting]

        assert text(seen) == "one 0 1 2 3 4 "
        assert [text(each) for each in others] == ["done"] * 3
        ends = [each[-1].WhichOneof("event") for each in (seen, *others)]
        assert ends == ["end"] * 4

    report = replay(recordings(tmp_path / "flight"))
    assert report.steps > 20
    assert report.hashes >= 1


async def test_a_reload_while_it_stops_is_harmless(tmp_path: Path) -> None:
    """Whoever asks is answered, or finds that it is gone."""
    async with reloadable(tmp_path) as server:
        assert await server.server.drain(WAIT_S)
        server.file.write_text(BASE + "[queue]\ncapacity = 7\n", encoding="utf-8")
        answer = await server.config.ReloadConfig(pb.ReloadConfigRequest())
        assert answer.applied
        await server.server.stop()

        report = await server.server.config.reload()

        assert report.outcome == "unchanged"


async def test_a_server_without_a_file_says_so(start_orchestrator: StartOrchestrator) -> None:
    """One that was made by a program, with a configuration of its own."""
    orchestrator = await start_orchestrator()

    answer = await orchestrator.config.ReloadConfig(pb.ReloadConfigRequest())

    assert answer.problems == ["there is no file to read: start it with --config FILE"]
    assert orchestrator.server.config.running == Config.model_validate(
        {"listen": "127.0.0.1:0", "store": {"kind": "memory"}}
    )
