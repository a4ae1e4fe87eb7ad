# SPDX-License-Identifier: Apache-2.0
"""Commands of `llorch` that other packages bring.

A package declares an entry point in the group `llorch.commands`; the entry point's name is the name
of the command, and it loads a `CommandPlugin`, which may be a module:

    [project.entry-points."llorch.commands"]
    simulate = "orchestrator_core.simulator.command"

Such a command works without a server. The client never imports the package by name.
"""

import argparse
import importlib.metadata
from typing import Protocol, cast

GROUP = "llorch.commands"


class CommandPlugin(Protocol):
    """What the entry point loads.

    `run` returns the exit code. A ValueError or OSError that it raises is shown as one sentence
    and ends with the exit code for a wrong request. `arguments` holds the common options too,
    `arguments.json` among them.
    """

    summary: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's own options on its parser."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Carries the command out."""


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """Returns the entry points by command, in order of name. Nothing is imported yet."""
    found = importlib.metadata.entry_points(group=GROUP)
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}


def load(entry: importlib.metadata.EntryPoint) -> CommandPlugin:
    """Imports a command. Raises whatever the import raises."""
    return cast("CommandPlugin", entry.load())
