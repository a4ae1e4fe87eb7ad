"""Fields of the wire, in the words of the command line."""

import argparse
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from llamaorch.orchestrator.v1 import artifact_service_pb2, catalog_service_pb2, job_pb2
from llamaorch_client import (
    AccessError,
    ErrorDetail,
    FieldViolation,
    InvalidParamsError,
    wire_request,
)
from llamaorch_client.cli import running, wording
from llamaorch_client.cli.arguments import parse
from llamaorch_client.cli.failure import sentences
from llamaorch_client.cli.wording import Wording

# All that `llorch run` can say about a job.
RUN = (
    *("run", "Hi", "--model", "m", "--max-tokens", "5", "--seed", "1", "--logprobs", "2"),
    *("--temperature", "0.5", "--top-p", "0.5", "--stop", "x", "--session", "s", "--reuse-kv"),
    *("--session-tokens", "5", "--session-time-ms", "5", "--session-cost-micros", "5"),
    *("--engine", "e", "--expected-tokens", "5", "--deadline-s", "5", "--queue-timeout-s", "5"),
    *("--label", "a=b", "--job-id", "j"),
)


def _said(*words: str) -> argparse.Namespace:
    arguments = parse(list(words), {})
    if arguments.command == "run":
        arguments.prompt = " ".join(arguments.prompt)
    return arguments


def _help(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        parse([*words, "--help"], {})
    return capsys.readouterr().out


def _exists(message: Descriptor, path: str) -> bool:
    name, _, rest = path.partition(".")
    found = message.fields_by_name.get(name)
    if found is None or not rest:
        return found is not None
    return found.message_type is not None and _exists(found.message_type, rest)


@pytest.mark.parametrize(
    ("message", "paths"),
    [
        (job_pb2.JobSpec.DESCRIPTOR, wording._RUN.keys() - {"chunk", "expected_size_bytes"}),
        (catalog_service_pb2.CatalogModel.DESCRIPTOR, wording.STATED.keys()),
        (
            artifact_service_pb2.ArtifactHeader.DESCRIPTOR,
            wording._ARTIFACTS.keys() - {"chunk", "artifact_id", "parent_id"},
        ),
    ],
)
def test_every_field_of_the_tables_is_on_the_wire(message: Descriptor, paths: set[str]) -> None:
    """A field that is renamed would be told by its name again."""
    assert [path for path in sorted(paths) if not _exists(message, path)] == []


def test_every_option_of_the_tables_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help has what its errors tell to change."""
    tables: dict[tuple[str, ...], Mapping[str, str]] = {
        (command,): table for command, table in wording._COMMANDS.items() if command != "models"
    }
    tables["models", "retire"] = wording._CHANGED
    tables["models", "register"] = {path: option for path, (_, option) in wording.STATED.items()}

    for words, table in tables.items():
        help_ = _help(list(words), capsys)
        for option in " ".join(table.values()).split():
            if option.startswith("--"):
                assert re.search(rf"{option}\b", help_), (words, option)


def test_every_field_that_run_sets_is_told_as_an_option() -> None:
    """Whatever the server finds wrong with a job, its option is named."""
    arguments = _said(*RUN)
    deadline = datetime(2030, 1, 2, tzinfo=UTC)
    spec = wire_request.job_spec(running._request(arguments, "m", deadline), "r")
    not_typed = {"request_id", "priority", "kv_hint", "failover", "on_disconnect", "determinism"}

    told = {path: wording.of(arguments).field(f"spec.{path}") for path in _set(spec)}

    assert {path.partition(".")[0] for path in told} >= {"sampling", "session_budgets", "labels"}
    untold = {path for path, option in told.items() if option == f"spec.{path}"}
    assert untold <= not_typed


def _set(message: Any, under: str = "") -> list[str]:
    found: list[str] = []
    for descriptor, value in message.ListFields():
        name = f"{under}{descriptor.name}"
        nested = descriptor.message_type is not None and not isinstance(value, Mapping)
        # An instant and a span are one value each.
        if nested and descriptor.message_type.file.package != "google.protobuf":
            found.extend(_set(value, f"{name}."))
        else:
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("spec.sampling.max_tokens must be 1", "--max-tokens must be 1"),
        ("lower max_tokens, or shorten it", "lower --max-tokens, or shorten it"),
        ("set session_id, or use budgets", "set --session, or use budgets"),
        ("spec.sampling.stop[1] is long.", "--stop number 2 is long."),
        ("spec.labels[7] is long, spec.labels[]", "--label 7 is long, --label"),
        ("spec.input.chat.messages[0].role is bad", "the prompt is bad"),
        ("header.expected_size_bytes makes 9 bytes", "the prompt makes 9 bytes"),
        ("set sessions.turns_max at the server", "set sessions.turns_max at the server"),
        ("no model 'max_tokens' or `job_id`", "no model 'max_tokens' or `job_id`"),
        ("pool max_tokens-a, my_max_tokens", "pool max_tokens-a, my_max_tokens"),
        ("spec.est_kv_bytes is no option", "spec.est_kv_bytes is no option"),
    ],
)
def test_a_sentence_names_options_and_leaves_the_rest(text: str, told: str) -> None:
    """Settings of the server, names of people and what has no option stay as they are."""
    assert wording.of(_said("run", "Hi")).sentence(text) == told


def test_what_a_file_states_is_told_by_its_key() -> None:
    """And what an option states, which goes before the file, by the option."""
    words = wording.of(
        _said(
            *("models", "update", "--file", "m.toml", "--digest", "x", "--label", "a=b"),
            *("--dimension", "layers=1"),
        )
    )

    fields = ("digest", "engines[0]", "labels[a]", "labels[b]", "dimensions.layers", "model_id")
    assert [words.field(f"model.{name}") for name in fields] == [
        "--digest",
        "`engines[0]` in m.toml",
        "--label a",
        "`labels[b]` in m.toml",
        "--dimension layers",
        "`model_id` in m.toml",
    ]
    assert words.sentence("model.gguf is damaged, model.ctx_max is 0") == (
        "model.gguf is damaged, `ctx_max` in m.toml is 0"
    )


def _invalid(message: str, *found: tuple[str, str], total: str = "") -> InvalidParamsError:
    violations = tuple(FieldViolation(name, text) for name, text in found)
    metadata = {"violations_total": total} if total else {}
    return InvalidParamsError(
        ErrorDetail(message, "INVALID_PARAMS", metadata=metadata, violations=violations)
    )


def test_one_bad_field_is_one_sentence_with_what_to_do() -> None:
    """It is not told twice; what the server says beyond the field stays."""
    words = wording.of(_said("run", "Hi"))
    budgets = ("spec.session_budgets", "must be left out")
    error = _invalid("spec.session_budgets must be left out: delete the session", budgets)

    assert sentences(error, "", words) == [
        "the request was refused: the budgets of --session must be left out: delete the session"
    ]


def test_several_bad_fields_have_a_line_each_and_none_is_lost() -> None:
    """Those that did not fit into the error are counted."""
    words = wording.of(_said("run", "Hi"))
    error = _invalid("spec.input bad (and 2 more)", ("spec.input", "bad"), ("url", "b"), total="3")

    assert sentences(error, "", words) == [
        "the request was refused: 3 things are wrong",
        "  the prompt: bad",
        "  url: b",
        "  and 1 more",
    ]


def test_without_a_table_fields_stay_as_they_were_sent() -> None:
    """For commands of other packages, and `llorch top`."""
    assert Wording().field("spec.input") == "spec.input"
    assert wording.of(argparse.Namespace(command="simulate")).sentence("a_b c.d") == "a_b c.d"


@pytest.mark.parametrize(
    ("token", "reason", "told"),
    [
        ("", "UNAUTHENTICATED", "set LLORCH_TOKEN to yours, or name the file that holds it by"),
        ("LLORCH_TOKEN", "UNAUTHENTICATED", "no: set LLORCH_TOKEN to a token of this server"),
        ("a.token", "UNAUTHENTICATED", "yours is in a.token: name the file of a token of this"),
        ("a.token", "PERMISSION_DENIED", "yours is in a.token: name the file of a token with"),
        ("", "PERMISSION_DENIED", "set LLORCH_TOKEN to a token with that role"),
    ],
)
def test_a_token_is_asked_for_by_its_option(token: str, reason: str, told: str) -> None:
    """AUTH-1001: not by the metadata in which it travels, and where it really comes from."""
    text = "send `authorization: Bearer TOKEN`" if not token else "no"

    (said,) = sentences(AccessError(ErrorDetail(text, reason)), "", Wording(), token)

    assert told.removeprefix("no: ") in said
    if reason == "UNAUTHENTICATED":
        assert "Bearer" not in said
    assert "ClientOptions.token" in str(AccessError(ErrorDetail(text, reason)))
