# SPDX-License-Identifier: Apache-2.0
"""What the server calls by its own names, in the words of the command line.

A server names the fields of its messages, for clients in any language. Whoever typed a command is
told the option or argument to change instead, or the key of the file in which it stands.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from llamaorch_client.model_catalog import ModelDimensions

# The messages whose fields a command line states.
_ROOTS = ("spec.", "model.", "header.")
_FIELD = re.compile(r"([^\[]+)(?:\[([^\]]*)\])?(.*)", re.DOTALL)
# A field within a sentence: a path, or a name of several words. What stands in quotes is a value.
_NAME = re.compile(
    r"(?<![\w'\"`./-])[a-z]+(?:[._][a-z][a-z_]*)+(?:\[[^\]]*\](?:\.[a-z_]+)*)?(?![\w/-])"
)
# As the server shortens the key of a label.
LABEL_CHARS = 32

_ALWAYS = {"correlation_id": "--correlation-id", "allow_plaintext": "--allow-plaintext"}
_RUN = {
    "model_id": "--model",
    "job_id": "--job-id",
    "session_id": "--session",
    "engine": "--engine",
    "input": "the prompt",
    "input.text": "the prompt",
    "input.chat.messages": "the prompt",
    "input.artifact_id": "--input-artifact",
    # A long prompt is put as an artifact first.
    "chunk": "the prompt",
    "expected_size_bytes": "the prompt",
    "sampling.seed": "--seed",
    "sampling.temperature": "--temperature",
    "sampling.top_p": "--top-p",
    "sampling.max_tokens": "--max-tokens",
    "sampling.stop": "--stop",
    "sampling.logprobs": "--logprobs",
    "expected_tokens": "--expected-tokens",
    "session_budgets": "the budgets of --session",
    "session_budgets.tokens": "--session-tokens",
    "session_budgets.time_ms": "--session-time-ms",
    "session_budgets.cost_micros": "--session-cost-micros",
    "deadline": "--deadline-s",
    "queue_timeout": "--queue-timeout-s",
    "labels": "--label",
}
_ARTIFACTS = {
    "artifact_id": "ID",
    "kind": "--kind",
    "media_type": "--media-type",
    "tags": "--tag",
    "parent_id": "--parent",
    "parent_ids": "--parent",
    "labels": "--label",
    "job_id": "--job",
    "session_id": "--session",
    "chunk": "the content",
    "expected_size_bytes": "the content",
    "expected_sha256": "the content's SHA-256",
}
# What may be stated of a model, by its path: the name in the arguments, and the option.
STATED = {
    "aliases": ("alias", "--alias"),
    "model_ref": ("ref", "--ref"),
    "digest": ("digest", "--digest"),
    "signature": ("signature", "--signature"),
    "engines": ("engine", "--engine"),
    "engine_version": ("engine_version", "--engine-version"),
    "sampler_profile_version": ("sampler_profile", "--sampler-profile"),
    "ctx_max": ("ctx_max", "--ctx-max"),
    "bytes_per_token": ("bytes_per_token", "--bytes-per-token"),
    "expected_tokens": ("expected_tokens", "--expected-tokens"),
    "requirements.min_vram_bytes": ("min_vram", "--min-vram"),
    "requirements.quantization": ("quantization", "--quantization"),
    "requirements.min_compute_cap": ("min_compute_cap", "--min-compute-cap"),
    "requirements.required_extensions": ("extension", "--extension"),
    "requirements.device_mask": ("device", "--device"),
}
_KEYS = frozenset(path.partition(".")[0] for path in STATED) | {"model_id", "labels", "dimensions"}
_CHANGED = {
    "model_id": "MODEL",
    "replaced_by": "--replaced-by",
    "grace": "--grace",
    "revision": "--revision",
}
_COMMANDS: Mapping[str, Mapping[str, str]] = {
    "run": _RUN,
    "stream": {"job_id": "JOB"},
    "cancel": {"job_id": "JOB"},
    "explain": {"job_id": "JOB"},
    "jobs": {"session_id": "--session"},
    "sessions": {"session_id": "SESSION"},
    "artifacts": _ARTIFACTS,
    "models": _CHANGED,
    "policy": {
        "url": "URL",
        "tool": "--tool",
        "job_id": "--job",
        "session_id": "--session",
    },
    "drain": {"pool_id": "POOL", "timeout": "--deadline"},
    "undrain": {"pool_id": "POOL"},
    "reload": {"pool_id": "POOL", "timeout": "--deadline", "model_ref": "--model"},
}


@dataclass(frozen=True, slots=True)
class Wording:
    """The options of one command by the fields that they state, without the message's name.

    What no option states stands in `file`, if there is one.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    file: str = ""

    def field(self, path: str) -> str:
        """What to change for a field that is wrong; the field itself where nothing states it."""
        below = _below(path)
        option = self._option(below)
        if option is not None:
            return option
        stated = self.file and below != path and re.split(r"[.\[]", below, maxsplit=1)[0] in _KEYS
        return f"`{below}` in {self.file}" if stated else path

    def sentence(self, text: str) -> str:
        """A sentence of the server, in which fields are told as options."""
        return _NAME.sub(lambda match: self._in_sentence(match[0]), text)

    def _in_sentence(self, name: str) -> str:
        if _below(name) != name:
            return self.field(name)
        if name in self.options:
            return self.options[name]
        ends = [option for path, option in self.options.items() if path.endswith(f".{name}")]
        return ends[0] if len(ends) == 1 else _ALWAYS.get(name, name)

    def _option(self, below: str) -> str | None:
        if below in self.options:
            return self.options[below]
        parts = _FIELD.fullmatch(below)
        if parts is None:
            return None
        base, index, rest = parts.groups()
        option = self.options.get(base)
        if option is None or index is None or rest:
            return option
        # The keys of labels are anybody's, numbers too.
        counted = index.isdecimal() and base != "labels"
        return f"{option} number {int(index) + 1}" if counted else f"{option} {index}".strip()


def of(arguments: argparse.Namespace) -> Wording:
    """The words of a command line."""
    if arguments.command == "models" and arguments.action in ("register", "update"):
        return Wording(dict(_given(arguments)), arguments.file or "")
    return Wording(_COMMANDS.get(arguments.command, {}))


def _given(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The options that state something of a model: all of them where no file can state it."""
    yield "revision", "--revision"
    if arguments.model or not arguments.file:
        yield "model_id", "MODEL"
    for path, (name, option) in STATED.items():
        if not arguments.file or getattr(arguments, name) is not None:
            yield path, option
    for key, _ in arguments.label or ():
        shown = key[:LABEL_CHARS]
        yield f"labels[{shown}]", f"--label {shown}"
    given = {key for key, _ in arguments.dimension or ()}
    for size in fields(ModelDimensions):
        if not arguments.file or size.name in given:
            yield f"dimensions.{size.name}", f"--dimension {size.name}"
    if not arguments.file:
        yield "labels", "--label"


def _below(path: str) -> str:
    for root in _ROOTS:
        if path.startswith(root):
            return path.removeprefix(root)
    return path
