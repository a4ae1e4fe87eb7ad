"""Tensors as Triton's protocol carries them: bytes, little-endian, without any I/O."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pool_managerd.engines.triton_inference_service_pb2 import ModelInferRequest, ModelInferResponse

_FORMATS = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B",
    "UINT16": "H", "UINT32": "I", "UINT64": "Q", "FP32": "f", "FP64": "d",
}  # fmt: skip
_LENGTH = struct.Struct("<I")

DATATYPES = frozenset(_FORMATS) | {"BYTES"}
"""Those that can be written and read."""


class TensorError(Exception):
    """Bytes that are no such tensor, or a value that it cannot hold."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a model says about one of its tensors. `rank` counts the batch dimension too."""

    name: str
    datatype: str
    rank: int
    optional: bool = False


def seed_modulus(datatype: str) -> int:
    """Returns the number of seeds that are not negative: larger ones are taken modulo it."""
    bits = 8 * struct.calcsize(_FORMATS[datatype])
    return 1 << (bits if datatype.startswith("U") else bits - 1)


def fits(datatype: str, value: object) -> bool:
    """Tells whether a value is of the tensor's kind: a boolean, text, number or whole number."""
    if datatype == "BYTES" or isinstance(value, str):
        return datatype == "BYTES" and isinstance(value, str)
    if datatype == "BOOL" or isinstance(value, bool):
        return datatype == "BOOL" and isinstance(value, bool)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return datatype.startswith("FP") or value == value // 1


def append(message: ModelInferRequest, tensor: Tensor, values: Sequence[object]) -> None:
    """Adds an input with so many elements, in the tensor's last dimension.

    Raises:
        TensorError: when the tensor cannot hold a value.
    """
    shape = [1] * (tensor.rank - 1) + [len(values)] if tensor.rank else []
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    message.raw_input_contents.append(b"".join(_bytes(tensor, value) for value in values))


def _bytes(tensor: Tensor, value: object) -> bytes:
    if not fits(tensor.datatype, value):
        raise TensorError(f"the model's input {tensor.name} is {tensor.datatype}")
    if isinstance(value, str):
        text = value.encode("utf-8", "replace")
        return _LENGTH.pack(len(text)) + text
    whole = isinstance(value, float) and not tensor.datatype.startswith("FP")
    try:
        return struct.pack(f"<{_FORMATS[tensor.datatype]}", int(value) if whole else value)  # type: ignore[call-overload] # `fits` says that it is a number
    except (struct.error, OverflowError):
        raise TensorError(f"the model's input {tensor.name} is {tensor.datatype}") from None


def text_of(response: ModelInferResponse, index: int) -> bytes:
    """Returns the one text of an output.

    Raises:
        TensorError: when it holds several texts, or none of them whole.
    """
    output = response.outputs[index]
    if output.datatype != "BYTES":
        raise TensorError(f"output {output.name} is {output.datatype} instead of BYTES")
    texts = list(output.contents.bytes_contents) or _texts(_raw(response, index))
    if len(texts) > 1:
        raise TensorError(f"output {output.name} holds {len(texts)} texts instead of one")
    return texts[0] if texts else b""


def numbers_of(response: ModelInferResponse, index: int) -> tuple[int, ...]:
    """Returns the whole numbers of an output.

    Raises:
        TensorError: when it holds something else.
    """
    output, raw = response.outputs[index], _raw(response, index)
    code = _FORMATS.get(output.datatype, "")
    if not code or output.datatype.startswith("FP") or len(raw) % struct.calcsize(code):
        raise TensorError(f"output {output.name} is {output.datatype} of {len(raw)} bytes")
    return tuple(value for (value,) in struct.iter_unpack(f"<{code}", raw))


def _raw(response: ModelInferResponse, index: int) -> bytes:
    contents = response.raw_output_contents
    return contents[index] if index < len(contents) else b""


def _texts(raw: bytes) -> list[bytes]:
    texts, at = [], 0
    while at < len(raw):
        if at + _LENGTH.size > len(raw):
            raise TensorError("a text breaks off in its length")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size + length
        if at > len(raw):
            raise TensorError("a text is shorter than it says")
        texts.append(raw[at - length : at])
    return texts
