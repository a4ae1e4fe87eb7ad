"""How much a request may hold, and what jobs and models of the catalog are both checked for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.wire.violations import Violations

_COMPUTE_CAP = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Bounds of a request. Sizes in UTF-8 bytes (`*_bytes_max`), characters or entries.

    Raises:
        ValueError: when a bound is not positive; the field is named.
    """

    input_bytes_max: int = 3 * 1024 * 1024
    messages_max: int = 4_096
    role_chars_max: int = 64
    name_chars_max: int = 256
    id_chars_max: int = 128
    requirement_entries_max: int = 64
    labels_max: int = 32
    label_key_bytes_max: int = 64
    label_value_bytes_max: int = 256

    def __post_init__(self) -> None:
        """Refuses bounds that are not positive."""
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value <= 0:
                raise ValueError(f"{spec.name} must be positive, is {value}")


DEFAULT_LIMITS = WireLimits()


def check_requirements(
    path: str, needs: job_pb2.Requirements, limits: WireLimits, bad: Violations
) -> None:
    """Notes what is wrong with requirements; `path` is where they stand."""
    bad.length(f"{path}.quantization", needs.quantization, limits.name_chars_max)
    bad.pattern(
        f"{path}.min_compute_cap", needs.min_compute_cap, _COMPUTE_CAP, 'MAJOR.MINOR, e.g. "8.6"'
    )
    for name, entries in (
        ("required_extensions", needs.required_extensions),
        ("device_mask", needs.device_mask),
    ):
        if not bad.count(f"{path}.{name}", len(entries), limits.requirement_entries_max):
            continue
        for index, entry in enumerate(entries):
            if not entry:
                bad.add(f"{path}.{name}[{index}]", "must not be empty")
            bad.length(f"{path}.{name}[{index}]", entry, limits.name_chars_max)


def check_labels(path: str, labels: Mapping[str, str], limits: WireLimits, bad: Violations) -> None:
    """Notes what is wrong with labels; `path` is where they stand."""
    if not bad.count(path, len(labels), limits.labels_max):
        return
    for key, value in sorted(labels.items()):
        entry = f"{path}[{key[:32]}]"
        if not 1 <= len(key.encode()) <= limits.label_key_bytes_max:
            bad.add(entry, f"its key must have 1 to {limits.label_key_bytes_max} bytes of UTF-8")
        if len(value.encode()) > limits.label_value_bytes_max:
            bad.add(entry, f"its value may have {limits.label_value_bytes_max} bytes of UTF-8")


def compute_cap(text: str) -> tuple[int, int] | None:
    """A checked compute capability as numbers; None for an empty one."""
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if text else None
