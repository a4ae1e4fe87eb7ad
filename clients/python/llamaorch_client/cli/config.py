# SPDX-License-Identifier: Apache-2.0
"""config show, diff, reload."""

import argparse
from collections.abc import Iterable

from llamaorch_client.aio import AsyncClient
from llamaorch_client.cli.failure import ExitCode
from llamaorch_client.cli.output import Output
from llamaorch_client.configuration import ConfigReload, SettingChange


async def config(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    """Shows the configuration, what a reload would change, or reloads it (HME-003)."""
    if arguments.action == "show":
        return await _show(arguments, out, client)
    reload = arguments.action == "reload"
    told = await client.reload_config(dry_run=not reload, correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record({"reload": told})
    elif told.problems:
        for problem in told.problems:
            # What concerns all of the file names it already.
            named = told.file and problem.startswith(told.file)
            where = "" if named else f"{told.file or 'the configuration'}: "
            out.say(f"llorch: {where}{problem}", "red")
        out.say("nothing has changed")
    else:
        _tell(told, out, "changed" if reload else "would change")
    return ExitCode.USAGE if told.problems else ExitCode.FINISHED


async def _show(arguments: argparse.Namespace, out: Output, client: AsyncClient) -> ExitCode:
    found = await client.config(correlation_id=arguments.correlation_id)
    if out.as_json:
        out.record({"config": found})
        return ExitCode.FINISHED
    out.result(f"# {found.file or 'no file: the defaults'}")
    for each in found.settings:
        restart = "" if each.reloadable else "  # restart"
        out.result(f"{each.key} = {each.value}{restart}")
    if found.omitted:
        out.say(f"and {found.omitted} more")
    return ExitCode.FINISHED


def _tell(told: ConfigReload, out: Output, verb: str) -> None:
    _list(told.applied, out, f"{verb} without a restart:")
    _list(told.needs_restart, out, "waits for a restart of orchestratord:")
    if told.omitted:
        out.say(f"and {told.omitted} more")
    if not told.applied and not told.needs_restart:
        out.result(f"nothing {verb}: {told.file or 'the defaults'} is in force")


def _list(changes: Iterable[SettingChange], out: Output, title: str) -> None:
    for number, each in enumerate(changes):
        if not number:
            out.result(title)
        out.result(f"  {each.key}: {each.before or 'unset'} -> {each.after or 'unset'}")
