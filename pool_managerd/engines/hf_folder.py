"""Reads what a folder of `config.json` and safetensors says of the memory that it takes. LO-205."""

import json
from collections.abc import Mapping
from pathlib import Path

from pool_managerd.core.hf_fit import HfModel, hf_model
from pool_managerd.core.tellable import BYTES_MAX
from pool_managerd.engines.gguf_metadata import MetadataError

_JSON_BYTES_MAX = 64 << 20


def read_hf_folder(folder: Path) -> HfModel:
    """The model of a folder. Blocks for milliseconds; the weights themselves are not read.

    Their size is that of the index, else of the safetensors files, else of the `.bin` files.

    Raises:
        MetadataError: when a file cannot be understood, or there are no weights.
        DimensionsError: when a key is missing or cannot be; it is named.
        OSError: when a file cannot be read.
    """
    config = _json(folder / "config.json")
    weights_bytes = _indexed(folder / "model.safetensors.index.json")
    for pattern in ("*.safetensors", "*.bin"):
        weights_bytes = weights_bytes or sum(file.stat().st_size for file in folder.glob(pattern))
    if not weights_bytes:
        raise MetadataError(f"{folder} holds no weights")
    return hf_model(config, weights_bytes)


def _indexed(path: Path) -> int:
    if not path.exists():
        return 0
    metadata = _json(path).get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    # Some tools write the size as a number with a fraction.
    return int(size) if isinstance(size, int | float) and 0 < size <= BYTES_MAX else 0


def _json(path: Path) -> Mapping[str, object]:
    if path.stat().st_size > _JSON_BYTES_MAX:
        raise MetadataError(f"{path.name} has more than {_JSON_BYTES_MAX} bytes")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise MetadataError(f"{path.name} is not JSON") from error
    if not isinstance(found, dict):
        raise MetadataError(f"{path.name} is not a JSON object")
    return found
