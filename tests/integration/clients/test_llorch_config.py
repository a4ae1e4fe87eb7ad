"""The `llorch` command: config show, diff, reload against a scripted server. HME-003."""

from llamaorch.orchestrator.v1 import config_service_pb2 as pb
from tests.integration.clients.llorch import llorch
from tests.integration.clients.scripted_server import ScriptedServer

CHANGED = pb.ConfigChange(key="queue.capacity", before="100", after="7")
NEW = pb.ConfigChange(key="throttle.identities.bob.queued_jobs", after="5")
ADDRESS = pb.ConfigChange(key="listen", before='"a:1"', after='"a:2"')


async def test_show_prints_what_is_in_force(server: ScriptedServer) -> None:
    """As a file would say it; what takes a restart is marked."""
    settings = [
        pb.ConfigSetting(key="listen", value='"a:1"'),
        pb.ConfigSetting(key="queue.capacity", value="100", reloadable=True),
    ]
    server.on("GetConfig", pb.GetConfigResponse(config_file="/etc/o.toml", settings=settings))

    shown = await llorch(server.address, "config")
    record = (await llorch(server.address, "--json", "config", "show")).records()[0]

    assert shown.stdout == '# /etc/o.toml\nlisten = "a:1"  # restart\nqueue.capacity = 100\n'
    assert record["config"]["settings"][1] == {
        "key": "queue.capacity",
        "value": "100",
        "reloadable": True,
    }


async def test_diff_and_reload_tell_key_by_key(server: ScriptedServer) -> None:
    """The former changes nothing, and says so."""
    answer = pb.ReloadConfigResponse(
        config_file="/etc/o.toml", applied=[CHANGED, NEW], needs_restart=[ADDRESS]
    )
    server.on("ReloadConfig", answer)

    diff = await llorch(server.address, "config", "diff")
    done = await llorch(server.address, "config", "reload")

    assert [call.request.dry_run for call in server.made("ReloadConfig")] == [True, False]
    lines = (
        "  queue.capacity: 100 -> 7\n"
        "  throttle.identities.bob.queued_jobs: unset -> 5\n"
        "waits for a restart of orchestratord:\n"
        '  listen: "a:1" -> "a:2"\n'
    )
    assert (diff.code, diff.stdout) == (0, "would change without a restart:\n" + lines)
    assert (done.code, done.stdout) == (0, "changed without a restart:\n" + lines)


async def test_a_file_with_a_mistake_is_told_with_exit_code_2(server: ScriptedServer) -> None:
    """And that nothing has changed."""
    problem = "queue.capacityy: unknown key; did you mean queue.capacity?"
    server.on(
        "ReloadConfig", pb.ReloadConfigResponse(config_file="/etc/o.toml", problems=[problem])
    )

    outcome = await llorch(server.address, "config", "reload")

    assert outcome.code == 2
    assert f"llorch: /etc/o.toml: {problem}" in outcome.stderr
    assert "nothing has changed" in outcome.stderr


async def test_nothing_to_change_is_told_too(server: ScriptedServer) -> None:
    """The file is in force already."""
    server.on("ReloadConfig", pb.ReloadConfigResponse(config_file="/etc/o.toml", unchanged=90))

    outcome = await llorch(server.address, "config", "reload")

    assert (outcome.code, outcome.stdout) == (0, "nothing changed: /etc/o.toml is in force\n")
