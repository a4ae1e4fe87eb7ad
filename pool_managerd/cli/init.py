"""A configuration to begin with: what was found on this machine, as a file that can be changed.

`pool-managerd init` writes it where there is no configuration yet. It starts nothing, and leaves it
to `pool-managerd check` whether all of it fits.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import psutil

from pool_managerd.cli.check import PROGRAMS, device_line
from pool_managerd.core.device import Device, DeviceHealth
from pool_managerd.core.model_ref import part_names
from pool_managerd.core.tellable import shown_text
from pool_managerd.devices.port import DeviceSource
from pool_managerd.engines.embedded import embedded_shortfalls, gpu_shortfalls
from pool_managerd.engines.gguf_kv import trained_context
from pool_managerd.engines.gguf_look import no_model
from pool_managerd.errors import DevicesUnavailableError

FILES_LOOKED_AT_MAX = 10_000
"""Entries of the configuration's folder that are looked at for models."""

MODELS_READ_MAX = 20
"""GGUF files that are looked into, each for a fraction of a second."""

CTX_TOKENS = 4_096
SLOTS = 2
_CTX_LEAST = 64
_NO_MODEL = "model.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found.

    Attributes:
        gpus: GPUs and slices of them, in order.
        no_gpu: Why there are none; empty where there are some.
        programs: Paths of engines on PATH, by name.
        lacking: What keeps the embedded engine from running here at all.
        embedded_gpu: Whether it would put layers on a GPU.
        models: GGUF files beside the configuration that are models, in order.
        left_out: Why others there are not among them, a sentence each.
        ctx_tokens: Context that the first of them was trained with, where it says so.
        threads: Processor cores for the embedded engine.
    """

    gpus: tuple[Device, ...] = ()
    no_gpu: str = ""
    programs: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    embedded_gpu: bool = False
    models: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    ctx_tokens: int | None = None
    threads: int = 1


async def look(folder: Path, source: DeviceSource) -> Machine:
    """What a configuration in `folder` could use; `source` reads the GPUs. Takes seconds."""
    gpus: tuple[Device, ...] = ()
    no_gpu = ""
    try:
        await source.start(lambda _device_id, _sentence: None, lambda: None)
        gpus = source.devices()
    except DevicesUnavailableError as error:
        no_gpu = str(error)
    finally:
        await source.stop()
    models, left_out = await asyncio.to_thread(_models, folder)
    first = await asyncio.to_thread(trained_context, folder / models[0]) if models else None
    lacking = await asyncio.to_thread(embedded_shortfalls)
    refused = bool(lacking) or not gpus or bool(await asyncio.to_thread(gpu_shortfalls, -1))
    return Machine(
        gpus=gpus,
        no_gpu="" if gpus else no_gpu or "none was found",
        programs={name: path for name in PROGRAMS if (path := shutil.which(name))},
        lacking=tuple(lacking),
        embedded_gpu=not refused,
        models=models,
        left_out=left_out,
        ctx_tokens=first,
        # One is left to the services.
        threads=max(1, (psutil.cpu_count(logical=False) or 2) - 1),
    )


def first_config(machine: Machine) -> str:
    """The text of a configuration for the machine, with comments that say what to change."""
    well = [gpu for gpu in machine.gpus if gpu.health is DeviceHealth.OK]
    lines = [
        "# What `pool-managerd init` found on this machine. Change it, then `pool-managerd check`.",
        "# docs/pool-managerd.md has every setting, and an example for each engine.",
        'orchestrator = "127.0.0.1:7070"   # where orchestratord listens',
        f'devices = "{"nvml" if well else "cpu"}"',
    ]
    if machine.no_gpu:
        lines.append(_comment(f"No NVIDIA GPU: {machine.no_gpu}"))
    lines += [_comment(f"Left out: {device_line(gpu)}") for gpu in machine.gpus if gpu not in well]
    lines += [_comment(f"Left out: {told}") for told in machine.left_out]
    name, engine = _engine(machine, gpu=bool(well))
    others = [other for other in machine.programs if other != name]
    if others:
        lines.append(_comment(f"Also on PATH: {', '.join(others)}"))
    # One Ollama serves with all devices.
    pools = [("gpu" if well else "cpu", "", "")]
    if well and name != "ollama":
        pools = [(_pool_id(gpu), gpu.device_id, device_line(gpu)) for gpu in well]
    for pool_id, device_id, told in pools:
        lines += ["", *([_comment(told)] if told else []), "[[pools]]", f'pool_id = "{pool_id}"']
        lines += [f"devices = [{json.dumps(device_id)}]"] if device_id else []
        lines += engine(machine, bool(well))
    return "\n".join(lines) + "\n"


_Lines = Callable[[Machine, bool], list[str]]


def _engine(machine: Machine, *, gpu: bool) -> tuple[str, _Lines]:
    """The engine to begin with, and what writes its table: one that would use what there is."""
    usable: dict[str, _Lines] = {}
    if not machine.lacking and (machine.embedded_gpu or not gpu):
        usable["embedded"] = _embedded
    if "llama-server" in machine.programs:
        usable["llama-server"] = _llama_server
    if gpu and "vllm" in machine.programs:
        usable["vllm"] = _vllm
    if "ollama" in machine.programs:
        usable["ollama"] = _ollama
    return next(iter(usable.items()), ("embedded", _embedded))


def _embedded(machine: Machine, gpu: bool) -> list[str]:
    lines = [
        "",
        "[pools.engine]",
        *(_comment(f"It cannot run here yet: {problem}") for problem in machine.lacking),
        'kind = "embedded"',
        *_model(machine),
    ]
    if gpu and not machine.embedded_gpu:
        return [*lines, "gpu_layers = 0   # its GPU code is not installed: docs/engines.md"]
    return [*lines, "gpu_layers = -1" if gpu else f"threads = {machine.threads}"]


def _llama_server(machine: Machine, gpu: bool) -> list[str]:
    return [
        "",
        "[pools.engine]",
        'kind = "llama_server"',
        *_model(machine),
        f"gpu_layers = {-1 if gpu else 0}",
        "",
        "[pools.engine.launch]",
        "command = [",
        f"  {_text(machine.programs['llama-server'])},",
        '  "--port", "{port}", "-m", "{model_path}", "-np", "{slots}",',
        '  "-c", "{ctx_total}", "-ngl", "{gpu_layers}", "--no-kv-unified", "--slots",',
        "]",
        'env = { LLAMA_API_KEY = "{api_key}" }',
    ]


def _vllm(machine: Machine, _gpu: bool) -> list[str]:
    return [
        "vram_claim_ratio = 0.9",
        "",
        "[pools.engine]",
        'kind = "openai"',
        'flavor = "vllm"',
        'model_path = "model"   # a folder of config.json and safetensors',
        'model_id = "model"     # what jobs ask for',
        "slots = 16",
        f"ctx_max = {CTX_TOKENS}",
        "",
        "[pools.engine.launch]",
        "command = [",
        f"  {_text(machine.programs['vllm'])},",
        '  "serve", "{model_path}", "--served-model-name", "{model_id}", "--port", "{port}",',
        '  "--host", "127.0.0.1", "--tensor-parallel-size", "{device_count}",',
        '  "--gpu-memory-utilization", "{vram_claim_ratio}", "--max-model-len", "{ctx_max}",',
        '  "--max-num-seqs", "{slots}",',
        "]",
        'env = { VLLM_API_KEY = "{api_key}" }',
    ]


def _ollama(_machine: Machine, _gpu: bool) -> list[str]:
    return [
        "",
        "[pools.engine]",
        'kind = "ollama"         # the server has to run: ollama serve',
        'ollama_model = "qwen3:8b"   # one of those that `ollama list` shows',
        'model_id = "qwen3"          # what jobs ask for',
        "slots = 1                   # at most the server's OLLAMA_NUM_PARALLEL",
        f"ctx_max = {CTX_TOKENS}",
    ]


def _model(machine: Machine) -> list[str]:
    """The model, and slots of a context that it has."""
    path, hint = _NO_MODEL, "a GGUF file, relative to this one; or model_ref, see docs/models.md"
    if machine.models:
        path, more = machine.models[0], len(machine.models) - 1
        hint = f"one of {more + 1} here" if more else "the model that is here"
    return [
        f"model_path = {_text(path)}   # {hint}",
        f"model_id = {_text(Path(path).stem)}   # what jobs ask for",
        f"slots = {SLOTS}",
        f"ctx_per_slot = {max(_CTX_LEAST, min(CTX_TOKENS, machine.ctx_tokens or CTX_TOKENS))}",
    ]


def _models(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the models of a folder, of a split one its first part; why others are none."""
    try:
        entries = sorted(entry.name for entry in islice(folder.iterdir(), FILES_LOOKED_AT_MAX))
    except OSError:
        return (), ()
    # A name that cannot be printed cannot be written into a file of UTF-8 either.
    names = [name for name in entries if name.endswith(".gguf") and name.isprintable()]
    # What belongs to a model that is here needs no word.
    parts = {part for name in names if _first(name) == name for part in part_names(name)[1:]}
    wanted = [name for name in names if name not in parts]
    found = {name: _left_out(folder, name) for name in wanted[:MODELS_READ_MAX]}
    more = len(wanted) - len(found)
    unread = (f"{more} more GGUF files, which were not looked at",) if more else ()
    return (
        tuple(name for name, why in found.items() if not why),
        (*filter(None, found.values()), *unread),
    )


def _left_out(folder: Path, name: str) -> str:
    """Why a file is no model to begin with; empty for one that is."""
    if "mmproj" in name:
        return f"{name} is the projector of another model"
    if _first(name) != name:
        return f"{name} is a part of a model of which {_first(name)} is missing"
    return no_model(folder / name).replace(f"{folder}/", "").removeprefix("model file ")


def _first(name: str) -> str:
    return part_names(name)[0]


def _pool_id(gpu: Device) -> str:
    number = gpu.device_id if gpu.index is None else f"gpu{gpu.index}"
    return number if gpu.slice_index is None else f"{number}-{gpu.slice_index}"


def _text(value: str) -> str:
    # JSON's strings are TOML's too.
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> str:
    return f"# {' '.join(shown_text(text).split())}"
