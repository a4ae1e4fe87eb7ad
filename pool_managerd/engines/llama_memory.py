"""What llama.cpp says that it took: its lines about buffers, as it loads a model. ORCH-3039.

    load_tensors:   CPU_Mapped model buffer size =    40.02 MiB
    llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB

Names that begin with CPU, and pinned ones that end with _Host, are the host's memory. Weights, keys
and values come in several buffers, which add up; what is computed in is told again whenever it is
laid out anew, and the last word counts. A draft model is loaded after the model itself, and tells
the same of its own. Sizes are told to 0.01 MiB.
"""

import re
from collections.abc import Iterable

_LINE = re.compile(
    r"(\S+) +(model|KV|RS|compute|output) buffer size = +([0-9]{1,9}(?:\.[0-9]+)?) MiB"
)
_DEVICE = re.compile(r"[A-Za-z]+([0-9]{1,3})(?:_.*)?")
_DRAFT = "loading draft model"
_ADDING = frozenset({"model", "KV", "RS"})
_MIB = 1 << 20
_BUFFERS_MAX = 1_024


class MemoryLog:
    """Reads lines of a log and keeps the sizes of buffers, at most 1,024 of them."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[str, str, bool], float] = {}
        self._of_draft = False

    def read(self, line: str) -> None:
        """Takes one line; most say nothing of memory."""
        self._of_draft = self._of_draft or _DRAFT in line
        if "buffer size" not in line or (match := _LINE.search(line)) is None:
            return
        key = (match[1], match[2], self._of_draft)
        if key in self._sizes or len(self._sizes) < _BUFFERS_MAX:
            before = self._sizes.get(key, 0.0) if match[2] in _ADDING else 0.0
            self._sizes[key] = before + float(match[3])

    @property
    def host_bytes(self) -> int | None:
        """Bytes of the host's memory; None when nothing was said."""
        if not self._sizes:
            return None
        return _bytes(size for (name, *_), size in self._sizes.items() if _device(name) is None)

    @property
    def device_bytes(self) -> tuple[int, ...]:
        """Bytes of each device, in the order in which the engine sees them."""
        numbers = {_device(name) for name, *_ in self._sizes} - {None}
        last = max((number for number in numbers if number is not None), default=-1)
        return tuple(
            _bytes(size for (name, *_), size in self._sizes.items() if _device(name) == number)
            for number in range(last + 1)
        )

    def purpose_bytes(self, purpose: str) -> int:
        """Bytes of all buffers of one purpose: model, KV, RS, compute, output."""
        return _bytes(size for (_, kind, _), size in self._sizes.items() if kind == purpose)


def _device(name: str) -> int | None:
    """Number of the device that a buffer called `name` lies on, None for the host's memory."""
    if name.startswith("CPU") or name.endswith("_Host"):
        return None
    match = _DEVICE.fullmatch(name)
    return int(match[1]) if match else None


def _bytes(sizes: Iterable[float]) -> int:
    return round(_MIB * sum(sizes))
