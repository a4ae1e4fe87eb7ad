# SPDX-License-Identifier: Apache-2.0
"""The configuration of an orchestrator as clients see it, and the protos of it."""

from collections.abc import Iterable
from dataclasses import dataclass

from llamaorch.orchestrator.v1 import config_service_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key with its value in TOML; `reloadable`: a reload changes it, without a restart."""

    key: str
    value: str
    reloadable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What is in force. `file` is a path on the server, empty when there is none.

    `omitted` counts settings beyond those that a server tells of.
    """

    file: str
    settings: tuple[Setting, ...]
    omitted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """A key whose value in the file is another than was in force; empty where there is none."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReload:
    """What became of a reload, or what would.

    With `problems`, one sentence each, nothing has changed. `applied` is in force; `needs_restart`
    is not, before a restart. `unchanged` counts the other keys of the file, `omitted` changes
    beyond those that a server tells of.
    """

    file: str
    problems: tuple[str, ...]
    applied: tuple[SettingChange, ...]
    needs_restart: tuple[SettingChange, ...]
    unchanged: int
    omitted: int


def configuration(message: pb.GetConfigResponse) -> Configuration:
    """What is in force."""
    return Configuration(
        file=message.config_file,
        settings=tuple(
            Setting(key=each.key, value=each.value, reloadable=each.reloadable)
            for each in message.settings
        ),
        omitted=message.omitted,
    )


def config_reload(message: pb.ReloadConfigResponse) -> ConfigReload:
    """What became of a reload."""
    return ConfigReload(
        file=message.config_file,
        problems=tuple(message.problems),
        applied=_changes(message.applied),
        needs_restart=_changes(message.needs_restart),
        unchanged=message.unchanged,
        omitted=message.omitted,
    )


def _changes(messages: Iterable[pb.ConfigChange]) -> tuple[SettingChange, ...]:
    return tuple(
        SettingChange(key=each.key, before=each.before, after=each.after) for each in messages
    )
