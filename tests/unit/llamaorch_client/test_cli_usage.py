"""Usage errors of `llorch`: one line that says what is wrong, and where to read on."""

from importlib.metadata import version

import pytest

from llamaorch_client.cli.arguments import parse

CHOICES = "it must be one of interactive, batch"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["pool", "x"],
            "llorch: COMMAND: is 'pool', 'pools' may be meant: it must be one of run, ",
        ),
        (["run", "--max_tokens", "5", "x"], "run: there is no option --max_tokens, '--max-tokens'"),
        (["run", "--zzz=5", "x"], "llorch run: there is no option --zzz; see `llorch run --help`"),
        (
            ["run", "--priority", "batc", "x"],
            f"--priority: is 'batc', 'batch' may be meant: {CHOICES}",
        ),
        (
            ["run", "hi", "--seed", "5", "you there"],
            "more was said than is understood: 'you there'",
        ),
        (
            ["models", "list", "--sate", "x"],
            "llorch models list: there is no option --sate, '--state'",
        ),
        (["--jsn", "models", "list"], "llorch models list: there is no option --jsn, '--json'"),
        (["version"], "llorch: COMMAND: is 'version': it must be one of run, "),
        (["run", "--temperature", "hot", "x"], "--temperature: must be a number, is 'hot'; see"),
        (["run", "--max-tokens"], "llorch run: --max-tokens: expected one argument; see"),
        (
            ["cancel"],
            "llorch cancel: the following arguments are required: JOB; see `llorch cancel",
        ),
        (["cancel", " "], "llorch cancel: JOB: is empty: give an id; see `llorch cancel --help`"),
        (["--json"], "llorch: name a command: run, stream, "),
    ],
)
def test_a_usage_error_is_one_line(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the nearest that may be said, and the help of the command."""
    with pytest.raises(SystemExit) as caught:
        parse(argv, {})
    told = capsys.readouterr()

    assert (caught.value.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert line in told.err
    assert told.err.endswith(" --help`\n")


@pytest.mark.parametrize("command", ["artifacts", "sessions"])
def test_what_lists_does_so_when_nothing_else_is_asked(command: str) -> None:
    """As `llorch models` and `llorch jobs` do."""
    assert parse([command], {}).action == "list"


@pytest.mark.parametrize(("words", "told"), [(["help"], "COMMAND"), (["help", "run"], "--chat")])
def test_help_is_a_word_too(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with many other commands."""
    with pytest.raises(SystemExit) as caught:
        parse(words, {})

    assert caught.value.code == 0
    assert told in capsys.readouterr().out


def test_the_version_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Of what is installed."""
    with pytest.raises(SystemExit) as caught:
        parse(["--version"], {})

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"llorch {version('llamaorch')}\n"
