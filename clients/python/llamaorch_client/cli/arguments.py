# SPDX-License-Identifier: Apache-2.0
"""The command line: what may be said, and what it means when nothing is said."""

import argparse
import difflib
import importlib.metadata
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from llamaorch_client.address import DEFAULT_HOST, DEFAULT_PORT
from llamaorch_client.artifact import ArtifactKind
from llamaorch_client.cli import access, models_arguments, plugins, values
from llamaorch_client.model import JobState

DEFAULT_SERVER = f"{DEFAULT_HOST}:{DEFAULT_PORT}"
EPILOG = """\
exit codes: 0 finished; 1 the job failed or was cancelled, or its output cannot be written; 2 the
request is wrong; 3 the server is not available; 4 rejected, try again later; 5 denied by policy;
130 Ctrl-C, 143 SIGTERM

environment: LLORCH_SERVER, LLORCH_TOKEN, LLORCH_TOKEN_FILE, LLORCH_CA_FILE, LLORCH_MODEL, NO_COLOR
"""


# Commands that come with another package than the client, and what to install for them.
_SERVER = "the orchestrator's package, llamaorch"
ELSEWHERE = {"replay": _SERVER, "simulate": _SERVER}


# Below it, words have little more in common than their length.
_ALIKE = 0.7


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where what may be said is told."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The innermost that reads the command line.
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and exits with 2."""
        told = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {told}; see `{self.prog} --help`\n")

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """The error about words that mean nothing here."""
        word = next((word for word in words if word.startswith("-")), "")
        if not word:
            self.error(f"more was said than is understood: {shlex.join(words)}")
        name = word.partition("=")[0]
        self.error(f"there is no option {name}{_meant(name, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if value in ELSEWHERE:
            which = f"`{self.prog} {value}` comes with {ELSEWHERE[value]}"
            self.error(f"{which}, which is not installed here")
        names = [str(choice) for choice in action.choices]
        told = f"is {value!r}{_meant(str(value), names)}: it must be one of {', '.join(names)}"
        raise argparse.ArgumentError(action, told)


class _Version(argparse.Action):
    """Looks for the version only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Prints it and exits."""
        try:
            version = importlib.metadata.version("llamaorch")
        except importlib.metadata.PackageNotFoundError:
            version = "of sources that are not installed"
        print(f"llorch {version}")  # noqa: T201 - as argparse does with its own
        parser.exit()


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, _ALIKE)
    return f", {near[0]!r} may be meant" if near else ""


def parse(argv: list[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Returns the arguments with every default filled in; exits with 2 on a usage error."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    common = _common()
    parser = _Parser(
        prog="llorch",
        description="Give jobs to llama-orch, follow them, see why they run where they run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _run(commands.add_parser("run", parents=[common], help="give a job and print its output"))
    stream = commands.add_parser("stream", parents=[common], help="follow a job from its beginning")
    _job_id(stream)
    _job_id(commands.add_parser("cancel", parents=[common], help="cancel a job"))
    _jobs(commands.add_parser("jobs", parents=[common], help="list jobs, newest first"))
    _sessions(commands.add_parser("sessions", parents=[common], help="list, show, delete sessions"))
    artifacts = commands.add_parser("artifacts", parents=[common], help="put, get, list artifacts")
    _artifacts(artifacts)
    pools = commands.add_parser("pools", parents=[common], help="list pools and their devices")
    pools.add_argument("--watch", action="store_true", help="again on every change, until Ctrl-C")
    _drain(commands.add_parser("drain", parents=[common], help="let a pool take no more work"))
    undrain = commands.add_parser("undrain", parents=[common], help="let it take work again")
    undrain.add_argument("pool_id", type=values.named, metavar="POOL", help="id of the pool")
    _reload(commands.add_parser("reload", parents=[common], help="load a pool's model anew"))
    _devices(commands.add_parser("devices", parents=[common], help="what the devices do, live"))
    _live(commands.add_parser("top", parents=[common], help="what happens now, live"))
    catalog = commands.add_parser("models", parents=[common], help="the catalog of models")
    models_arguments.add(catalog, common)
    _policy(commands.add_parser("policy", parents=[common], help="what tools may connect to"))
    _config(commands.add_parser("config", parents=[common], help="show or reload the settings"))
    explain = commands.add_parser(
        "explain", parents=[common], help="why a job runs where it runs, or why it waits"
    )
    _job_id(explain)
    commands.add_parser(
        "capabilities", parents=[common], help="models, engines, limits, features: what it can do"
    )
    commands.add_parser("status", parents=[common], help="health, capabilities, pools and queue")
    _add_plugins(commands, common, words)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        arguments.parser.refuse(unknown)
    if arguments.command is None:
        parser.error(f"name a command: {', '.join(commands.choices)}")
    _fill(arguments, environ)
    return arguments


def _devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        action="append",
        metavar="ADDRESS",
        help="ask this pool manager instead of the orchestrator, for all it knows; repeatable",
    )
    _live(parser)


def _reload(parser: argparse.ArgumentParser) -> None:
    _pool_and_deadline(parser)
    parser.add_argument(
        "--model", default="", metavar="REF", help="another model: a path or an address; see models"
    )


def _pool_and_deadline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool_id", type=values.named, metavar="POOL", help="id of the pool")
    parser.add_argument(
        "--deadline",
        type=values.deadline,
        metavar="TIME",
        help="stop what still runs after 90s, 5m, 1h; default: the server's, 0s: at once",
    )


def _drain(parser: argparse.ArgumentParser) -> None:
    _pool_and_deadline(parser)
    parser.add_argument("--wait", action="store_true", help="return once nothing runs there")


def _live(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="show it once; so does --json")
    parser.add_argument(
        "--interval-s", type=values.interval, default=1.0, metavar="S", help="between two looks; 1"
    )


def _add_plugins(
    commands: "argparse._SubParsersAction[_Parser]",
    common: _Parser,
    words: Sequence[str],
) -> None:
    """Adds the commands of other packages; imports only what the command line may need."""
    found = plugins.installed()
    # Without a word that is a command, the usage error names them all.
    no_command = {*commands.choices, *found}.isdisjoint(words)
    show_all = no_command or not {"-h", "--help"}.isdisjoint(words)
    for name, entry in found.items():
        if not show_all and name not in words:
            continue
        plugin = plugins.load(entry)
        parser = commands.add_parser(name, parents=[common], help=plugin.summary)
        plugin.add_arguments(parser)
        parser.set_defaults(plugin=plugin)


def _common() -> _Parser:
    # Suppressed defaults let the same option stand before and after the command.
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--server", metavar="HOST:PORT", help=f"orchestrator (default {DEFAULT_SERVER})"
    )
    common.add_argument("--json", action="store_true", help="machine-readable output")
    access.add_arguments(common)
    common.add_argument("--correlation-id", metavar="ID", help="id under which the server logs")
    return common


def _fill(arguments: argparse.Namespace, environ: Mapping[str, str]) -> None:
    defaults = {
        "typed": frozenset(vars(arguments)),
        "server": environ.get("LLORCH_SERVER", "").strip() or DEFAULT_SERVER,
        "json": False,
        "correlation_id": None,
        **access.defaults(environ),
        "wait_s": 0.0,
        "plugin": None,
    }
    for name, value in defaults.items():
        if not hasattr(arguments, name):
            setattr(arguments, name, value)
    if arguments.command == "run" and not arguments.model:
        arguments.model = environ.get("LLORCH_MODEL", "")


def _job_id(parser: argparse.ArgumentParser) -> None:
    told = "id of the job, or the beginning or end of one that the server made, if no other has it"
    parser.add_argument("job_id", type=values.named, metavar="JOB", help=told)


def _run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", nargs="*", metavar="PROMPT", help="prompt; without one, or as -, read from stdin")
    add("--prompt-file", metavar="FILE", help="read the prompt from a file")
    add("--input-artifact", default="", metavar="ID", help="use a stored input as the prompt")
    add("--model", default="", help="model (default: LLORCH_MODEL, or the only one served)")
    add("--chat", action="store_true", help="send the prompt as a chat message, with a template")
    add("--system", metavar="TEXT", help="system message; implies --chat")
    add("--priority", choices=("interactive", "batch"), default="interactive")
    add("--max-tokens", type=values.positive, metavar="N", help="stop after N tokens")
    add("--seed", type=values.whole(0, values.UINT32_MAX), metavar="N")
    add(
        "--logprobs",
        type=values.whole(0, values.UINT32_MAX),
        metavar="N",
        help="log probability of each token, beside the N likeliest: at the end, or with --json",
    )
    add("--temperature", type=values.number, metavar="T", help="0 is greedy")
    add("--top-p", type=values.number, metavar="P")
    add("--stop", action="append", default=[], metavar="TEXT", help="stop at TEXT; may be repeated")
    add("--session", default="", metavar="ID", help="conversation that the job belongs to")
    add("--reuse-kv", action="store_true", help="prefer the pool whose cache holds the session")
    add(
        "--session-tokens", type=values.amount, metavar="N", help="budget of the session that opens"
    )
    add("--session-time-ms", type=values.amount, metavar="MS", help="its time on pools")
    add("--session-cost-micros", type=values.amount, metavar="N", help="its cost, in millionths")
    add("--engine", default="", help="engine family that must serve the job")
    add(
        "--expected-tokens",
        type=values.positive,
        metavar="N",
        help="guess that improves predictions",
    )
    add("--deadline-s", type=values.seconds, metavar="S", help="expire the job after S seconds")
    add(
        "--queue-timeout-s",
        type=values.seconds,
        metavar="S",
        help="expire it after S seconds of waiting",
    )
    add("--label", type=values.pair, action="append", default=[], metavar="KEY=VALUE")
    add("--job-id", default="", metavar="ID", help="id for the job (default: the server's)")
    add("--detach", action="store_true", help="print the job's id and leave it running")
    add(
        "--wait-s",
        type=values.seconds,
        default=0.0,
        metavar="S",
        help="give the job again, for up to S seconds (at most 86400), while the server refuses it "
        "for now (queue full, throttle) or cannot be reached; it limits neither waiting in the "
        "queue nor running. Default: a refusal is told at once, an absence after 2 s",
    )


def _artifacts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "action",
        nargs="?",
        choices=("put", "get", "list", "show", "delete"),
        default="list",
        metavar="ACTION",
        help="put FILE (- is stdin), get ID, list (the default), show ID, delete ID",
    )
    add("what", nargs="?", default="", metavar="WHAT", help="the file, or the artifact's id")
    add("-o", "--output", default="", metavar="FILE", help="where to get it to; - is stdout")
    kinds = [kind.value.lower() for kind in ArtifactKind if kind is not ArtifactKind.UNSPECIFIED]
    add("--kind", choices=kinds, default="", help="what it is for; list: only these")
    add("--media-type", default="", metavar="TYPE", help="default: what the file's name says")
    add(
        "--tag",
        action="append",
        default=[],
        metavar="TAG",
        help="repeatable; list: all of them",
    )
    add("--parent", action="append", default=[], metavar="ID", help="what it was made from")
    add("--job", default="", metavar="ID", help="job that it belongs to")
    add("--session", default="", metavar="ID", help="session that it belongs to")
    add("--label", type=values.pair, action="append", default=[], metavar="KEY=VALUE")
    add("--limit", type=values.positive, default=100, metavar="N", help="list at most N artifacts")


def _policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=("check",), metavar="ACTION", help="check: 0 is allowed, 5 denied"
    )
    parser.add_argument("url", metavar="URL", help="address that a tool wants to connect to")
    parser.add_argument("--tool", default="", metavar="NAME", help="tool that asks, for the log")
    parser.add_argument("--job", default="", metavar="ID", help="job on whose behalf, for the log")
    parser.add_argument("--session", default="", metavar="ID", help="and session")


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("show", "diff", "reload"),
        default="show",
        metavar="ACTION",
        help="show (the default): what is in force; diff: what a reload would change; reload",
    )


def _sessions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "show", "delete"),
        default="list",
        metavar="ACTION",
        help="list (the default), show or delete",
    )
    parser.add_argument("session_id", nargs="?", default="", metavar="SESSION", help="which one")


def _jobs(parser: argparse.ArgumentParser) -> None:
    states = [state.value.lower() for state in JobState if state is not JobState.UNSPECIFIED]
    parser.add_argument(
        "--state", action="append", default=[], choices=states, help="only these; may be repeated"
    )
    parser.add_argument("--session", default="", metavar="ID", help="only jobs of this session")
    parser.add_argument(
        "--limit", type=values.positive, default=20, metavar="N", help="at most N jobs"
    )
