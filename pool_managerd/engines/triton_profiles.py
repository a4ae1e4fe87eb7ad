"""How models of the known families are asked through Triton, and read: names as data. ORCH-3057.

Sources: the vLLM backend's `src/model.py` and `src/utils/request.py`; `config.pbtxt` of the model
`ensemble` in TensorRT-LLM's `triton_backend/all_models/inflight_batcher_llm`, and Triton's own
OpenAI frontend, which adds up `num_output_tokens` of both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

INPUT_FIELDS = (
    "prompt", "messages", "continue_text", "continue_token_ids", "max_tokens", "seed",
    "temperature", "top_p", "top_k", "min_p", "stop", "json_schema", "grammar",
)  # fmt: skip
"""What a request may hold; each goes to the tensor that the profile names for it."""

OUTPUT_FIELDS = ("text", "finish_reason", "token_ids", "tokens_in", "tokens_out")
"""What a response may hold."""

Names = Mapping[str, tuple[str, ...]]
"""The tensors that may take or give a field; the first that the model has does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One family of models.

    Attributes:
        name: Also part of the sampler profile's version.
        inputs: Tensors by field. A field that is in no tensor of the model is refused.
        outputs: Tensors by field.
        flags: Booleans that every request sets where the model has such an input.
        sampling_json: Tensor that takes sampling as one JSON object; empty where each has its own.
        sampling_names: Names in that object by field.
        options: Engine options that are passed on; None: any input that nothing else fills.
        stop_in_text: The text ends with the stop sequence that ended it, which is cut off then.
        busy: Gauges in Triton's metrics whose sum is the number of requests at work, with labels.
        busy_of_model: The gauges have a label `model`, which is the model's own name.
    """

    name: str
    inputs: Names
    outputs: Names
    flags: Mapping[str, bool] = field(default_factory=dict)
    sampling_json: str = ""
    sampling_names: Mapping[str, str] = field(default_factory=dict)
    options: frozenset[str] | None = None
    stop_in_text: bool = False
    busy: tuple[tuple[str, Mapping[str, str]], ...] = ()
    busy_of_model: bool = True


_FLAGS = {
    "stream": True,
    "exclude_input_in_output": True,
    "return_finish_reason": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}

_OUTPUTS = {
    "text": ("text_output",),
    "finish_reason": ("finish_reason",),
    "token_ids": ("token_ids",),
    "tokens_in": ("num_input_tokens",),
    "tokens_out": ("num_output_tokens",),
}

PLAIN = Profile(
    name="plain",
    inputs={
        "prompt": ("text_input", "prompt"),
        "stop": ("stop", "stop_words"),
        "seed": ("seed", "random_seed"),
        **{
            name: (name,)
            for name in INPUT_FIELDS
            if name not in {"prompt", "stop", "seed"}
        },
    },
    outputs=_OUTPUTS,
    flags=_FLAGS,
)  # fmt: skip
"""A model of one's own, e.g. of the Python backend."""

_VLLM_SAMPLING = ("max_tokens", "seed", "temperature", "top_p", "top_k", "min_p", "stop")

VLLM = Profile(
    name="vllm",
    inputs={"prompt": ("text_input",)},
    outputs={name: _OUTPUTS[name] for name in OUTPUT_FIELDS if name != "token_ids"},
    flags=_FLAGS,
    sampling_json="sampling_parameters",
    sampling_names={name: name for name in _VLLM_SAMPLING},
    options=frozenset({
        "frequency_penalty", "ignore_eos", "lora_name", "min_tokens", "presence_penalty",
        "repetition_penalty", "skip_special_tokens",
    }),
    busy=(("vllm:num_requests_running", {}), ("vllm:num_requests_waiting", {})),
)  # fmt: skip
"""The backend `vllm`."""

TENSORRT_LLM = Profile(
    name="tensorrt_llm",
    inputs={
        "prompt": ("text_input",),
        "max_tokens": ("max_tokens",),
        "seed": ("seed", "random_seed"),
        "temperature": ("temperature",),
        "top_p": ("top_p",),
        "top_k": ("top_k",),
        "stop": ("stop_words",),
    },
    outputs={name: _OUTPUTS[name] for name in ("text", "tokens_in", "tokens_out")},
    flags={name: True for name in _FLAGS if name != "return_finish_reason"},
    options=frozenset({
        "bad_words", "frequency_penalty", "length_penalty", "min_length", "min_tokens",
        "presence_penalty", "repetition_penalty",
    }),
    stop_in_text=True,
    busy=(("nv_trt_llm_request_metrics", {"request_type": "active"}),),
    # The gauge names the model `tensorrt_llm`, which the ensemble or the script calls.
    busy_of_model=False,
)  # fmt: skip
"""The models `ensemble` and `tensorrt_llm_bls` of TensorRT-LLM's `inflight_batcher_llm`."""

PROFILES = {profile.name: profile for profile in (PLAIN, VLLM, TENSORRT_LLM)}
