"""Usage errors of `llorch`: one line that says what is wrong, and where to read on."""

import pytest

from llamaorch_client.cli.arguments import parse

CHOICES = "it must be one of interactive, batch"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["rnu", "x"], "llorch: COMMAND: is 'rnu', 'run' may be meant: it must be one of run, "),
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
