"""Commands that other packages bring to `llorch`."""

import argparse
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint

import pytest

from llamaorch_client.cli import plugins
from llamaorch_client.cli.arguments import parse
from llamaorch_client.cli.failure import ExitCode
from llamaorch_client.cli.main import main


@dataclass
class Greeter:
    """A command that says what it was told, or fails as it was told."""

    summary: str = "say hello"
    failure: Exception | None = None
    seen: list[argparse.Namespace] = field(default_factory=list)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Takes a name."""
        parser.add_argument("--name", required=True)

    def run(self, arguments: argparse.Namespace) -> int:
        """Remembers the arguments."""
        self.seen.append(arguments)
        if self.failure is not None:
            raise self.failure
        return 7


@pytest.fixture
def greeter(monkeypatch: pytest.MonkeyPatch) -> Greeter:
    """The only installed command."""
    plugin = Greeter()
    entry = EntryPoint("greet", "nowhere:greeter", plugins.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda: {"greet": entry})
    monkeypatch.setattr(plugins, "load", lambda _: plugin)
    return plugin


def test_a_command_of_another_package_gets_its_own_and_the_common_options(
    greeter: Greeter,
) -> None:
    """The exit code is the command's."""
    code = main(["greet", "--name", "Ada", "--json"])

    assert code == 7
    assert (greeter.seen[0].name, greeter.seen[0].json) == ("Ada", True)


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ValueError("--name must be a name"), "llorch: --name must be a name"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "llorch: a.csv: No such file"),
    ],
)
def test_an_error_of_such_a_command_is_a_sentence(
    greeter: Greeter, capsys: pytest.CaptureFixture[str], failure: Exception, sentence: str
) -> None:
    """No traceback, and the exit code for a wrong request."""
    greeter.failure = failure

    code = main(["greet", "--name", "Ada"])

    assert code == ExitCode.USAGE
    assert sentence in capsys.readouterr().err


def test_help_lists_the_commands_of_other_packages(
    greeter: Greeter, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its summary."""
    with pytest.raises(SystemExit):
        parse(["--help"], {})

    assert "say hello" in capsys.readouterr().out


def test_a_package_is_only_imported_for_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other commands start as fast as without it."""
    loaded: list[str] = []
    entry = EntryPoint("greet", "nowhere:greeter", plugins.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda: {"greet": entry})
    monkeypatch.setattr(plugins, "load", lambda found: loaded.append(found.name))

    parse(["pools"], {})

    assert loaded == []


def test_a_known_command_that_is_not_installed_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client alone cannot simulate."""
    monkeypatch.setattr(plugins, "installed", dict)

    with pytest.raises(SystemExit) as stopped:
        parse(["simulate", "--trace", "x"], {})

    assert stopped.value.code == ExitCode.USAGE
    assert "comes with the orchestrator's package" in capsys.readouterr().err


def test_the_simulator_is_declared() -> None:
    """The package that is tested here brings it."""
    assert plugins.load(plugins.installed()["simulate"]).summary
