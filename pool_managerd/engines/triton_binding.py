"""Fits a profile to a model: which of its tensors takes what, decided once at the start."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pool_managerd.engines.triton_profiles import OUTPUT_FIELDS, Profile
from pool_managerd.engines.triton_tensors import DATATYPES, Tensor

_FIELD_TYPES = {
    "prompt": {"BYTES"},
    "messages": {"BYTES"},
    "continue_text": {"BYTES"},
    "stop": {"BYTES"},
    "json_schema": {"BYTES"},
    "grammar": {"BYTES"},
    "text": {"BYTES"},
    "finish_reason": {"BYTES"},
    "temperature": {"FP32", "FP64"},
    "top_p": {"FP32", "FP64"},
    "min_p": {"FP32", "FP64"},
}
_INTEGERS = DATATYPES - {"BYTES", "BOOL", "FP32", "FP64"}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a Triton server says about a model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoupled: bool
    versions: tuple[str, ...] = ()
    backend: str = ""


@dataclass(frozen=True, slots=True)
class Binding:
    """A profile that was fitted to a model.

    Attributes:
        profile: The profile.
        inputs: Tensors by field.
        outputs: Names of tensors by field.
        flags: Tensors that every request sets, with the value.
        options: Tensors that an engine option may fill, by name.
    """

    profile: Profile
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, str]
    flags: tuple[tuple[Tensor, bool], ...]
    options: Mapping[str, Tensor]

    def takes(self, field: str) -> bool:
        """Tells whether the model can be given a field, in a tensor or in the JSON object."""
        in_json = "sampling" in self.inputs and field in self.profile.sampling_names
        return in_json or field in self.inputs

    @property
    def extensions(self) -> tuple[str, ...]:
        """What the model offers beyond plain text, as `EngineInfo.extensions` names it."""
        offered = {
            "chat_template": "messages" in self.inputs,
            "grammar": "grammar" in self.inputs,
            "json_schema": "json_schema" in self.inputs,
            "token_ids": "token_ids" in self.outputs and "continue_token_ids" in self.inputs,
        }
        return tuple(name for name, there in offered.items() if there)


def bind(
    profile: Profile, facts: ModelFacts, names: Mapping[str, str], *, ignore_seed: bool
) -> tuple[Binding, list[str]]:
    """Fits the profile, and returns what is missing, as sentences; the fit serves if there is none.

    `names` are the operator's own names of tensors, by field.
    """
    inputs = {tensor.name: tensor for tensor in facts.inputs}
    outputs = {tensor.name: tensor for tensor in facts.outputs}
    shortfalls = _unknown_names(names, inputs, outputs)
    taken = _chosen(profile.inputs, names, inputs)
    given = _chosen(profile.outputs, names, outputs)
    json_tensor = inputs.get(profile.sampling_json)
    if json_tensor is not None:
        taken["sampling"] = json_tensor
    flags = tuple((inputs[name], value) for name, value in profile.flags.items() if name in inputs)
    owned = {tensor.name for tensor in taken.values()} | {tensor.name for tensor, _ in flags}
    binding = Binding(
        profile=profile,
        inputs=taken,
        outputs={field: tensor.name for field, tensor in given.items()},
        flags=flags,
        options=_options(profile, inputs, owned),
    )
    shortfalls += _missing(binding, facts, ignore_seed=ignore_seed)
    shortfalls += _wrong_types(taken | given)
    return binding, shortfalls


def _chosen(
    candidates: Mapping[str, tuple[str, ...]],
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    chosen = {}
    for field, defaults in candidates.items():
        wanted = (names[field],) if field in names else defaults
        found = next((tensors[name] for name in wanted if name in tensors), None)
        if found is not None:
            chosen[field] = found
    return chosen


def _options(
    profile: Profile, inputs: Mapping[str, Tensor], owned: set[str]
) -> Mapping[str, Tensor]:
    if profile.sampling_json:
        return {}
    return {
        name: tensor
        for name, tensor in inputs.items()
        if name not in owned
        and tensor.datatype in DATATYPES
        and (profile.options is None or name in profile.options)
    }


def _unknown_names(
    names: Mapping[str, str], inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> list[str]:
    shortfalls = []
    for field, name in names.items():
        side, tensors = ("output", outputs) if field in OUTPUT_FIELDS else ("input", inputs)
        if name not in tensors:
            shortfalls.append(
                f"tensors.{field} = {name!r}, but the model's {side}s are {_listed(tensors)}"
            )
    return shortfalls


def _missing(binding: Binding, facts: ModelFacts, *, ignore_seed: bool) -> list[str]:
    shortfalls, profile = [], binding.profile
    inputs, outputs = (_listed(t.name for t in side) for side in (facts.inputs, facts.outputs))
    if not facts.decoupled:
        shortfalls.append(
            "the model gives one response per request: set model_transaction_policy "
            "{ decoupled: true } in its config.pbtxt"
        )
    if "prompt" not in binding.inputs:
        wanted = " or ".join(profile.inputs["prompt"])
        shortfalls.append(
            f"the model has no input {wanted} for the prompt, only {inputs}: name one in "
            "tensors.prompt"
        )
    if "text" not in binding.outputs:
        wanted = " or ".join(profile.outputs["text"])
        shortfalls.append(
            f"the model has no output {wanted} for the text, only {outputs}: name one in "
            "tensors.text"
        )
    if not binding.takes("seed") and not ignore_seed:
        shortfalls.append(
            "the model takes no seed: name its input in tensors.seed, or set ignore_seed = true if "
            "equal seeds need not give equal text"
        )
    filled = {binding.inputs[name].name for name in ("prompt", "max_tokens", "seed", "sampling")
              if name in binding.inputs}  # fmt: skip
    filled |= {tensor.name for tensor, _ in binding.flags}
    shortfalls += [
        f"not every request fills the model's input {tensor.name}: set optional: true for it in "
        "the model's config.pbtxt"
        for tensor in facts.inputs
        if not tensor.optional and tensor.name not in filled
    ]
    return shortfalls


def _wrong_types(tensors: Mapping[str, Tensor]) -> list[str]:
    shortfalls = []
    for field, tensor in tensors.items():
        allowed = {"BYTES"} if field == "sampling" else _FIELD_TYPES.get(field, _INTEGERS)
        if tensor.datatype not in allowed:
            shortfalls.append(
                f"tensor {tensor.name} is {tensor.datatype}, but {field} needs "
                f"{' or '.join(sorted(allowed))}"
            )
    return shortfalls


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
