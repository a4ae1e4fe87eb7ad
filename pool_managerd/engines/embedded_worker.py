"""The process in which the embedded llama.cpp runs.

Loading holds the interpreter's lock, a failed assertion in C++ ends the process, and a loaded
model cannot be unloaded: so the engine has a process of its own, and stopping it means ending it.

Protocol of `python -m pool_managerd.engines.embedded_worker`: the parent writes one JSON line
(`WorkerSettings`) to standard input and keeps it open; the worker answers one JSON line
(`WorkerReport`) on its original standard output. Whatever else the engine prints goes to standard
error. The end of standard input is the order to exit.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

_PR_SET_PDEATHSIG = 1
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_SPARE_HTTP_THREADS = 6
# llama.cpp tells the sizes of its buffers among its finer lines; afterwards errors are enough, and
# a line per request would cost time.
_LOADING_VERBOSITY, _SERVING_VERBOSITY = 4, 1
_VERBOSITY_SYMBOL = "common_log_verbosity_thold"
# `common_log_main()` and `common_log_flush(common_log *)`, as the C++ compilers of Linux name them.
_LOG_SYMBOL, _FLUSH_SYMBOL = "_Z15common_log_mainv", "_Z16common_log_flushP10common_log"
_MAX_SETTINGS_BYTES = 65_536
# Prompt tokens that are computed at a time. llama-server looks at cancels between batches only, and
# a processor takes as long for 16 tokens as a GPU for thousands.
_CPU_PROMPT_TOKENS, _GPU_PROMPT_TOKENS = 16, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What the worker loads. `ctx_per_slot` is in tokens, `devices` are CUDA device ids."""

    model_path: str
    slots: int
    ctx_per_slot: int
    threads: int
    gpu_layers: int
    devices: tuple[str, ...]
    tensor_split: tuple[int, ...]
    kv_type: str
    draft_model_path: str
    api_key: str
    parent_pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """How the load went: an address, or an error for people."""

    base_url: str = ""
    version: str = ""
    error: str = ""


def batch_tokens(slots: int, gpu_layers: int) -> int:
    """Tokens of a batch: some of a prompt, and the next one of each other slot.

    The same for equal arguments on every machine: sizes of batches change the last bits of results.
    """
    return slots - 1 + (_GPU_PROMPT_TOKENS if gpu_layers else _CPU_PROMPT_TOKENS)


def main() -> None:
    """Loads the model, reports the address, serves until standard input ends."""
    report_to = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    settings = _read_settings()
    _die_with_parent(settings.parent_pid)
    try:
        report, server = _load(settings)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent tells people
        report, server = WorkerReport(error=f"{type(error).__name__}: {error}"), None
    os.write(report_to, json.dumps(asdict(report)).encode() + b"\n")
    os.close(report_to)
    if server is None:
        _write_log_out()
        return
    while os.read(_STDIN, 4096):
        pass
    # The destructors of a loaded model can block for a minute; the kernel frees everything at once.
    os._exit(0)


def _read_settings() -> WorkerSettings:
    line = sys.stdin.buffer.readline(_MAX_SETTINGS_BYTES)
    return WorkerSettings(**json.loads(line))


def _die_with_parent(parent_pid: int) -> None:
    """Ends this process when its parent ends, even while loading holds the interpreter's lock."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


NO_GPU = (
    "gpu_layers is set, but this xllamacpp sees no GPU: the package index has it without GPU code;"
    " set gpu_layers = 0, install a build for the GPU, or launch a llama-server"
)


def sees_gpu() -> bool:
    """Whether the engine could put layers on a GPU. Loads it into this process."""
    import xllamacpp  # noqa: PLC0415 - as below

    return any("GPU" in device["type"].name for device in xllamacpp.get_device_info())


def _load(settings: WorkerSettings) -> tuple[WorkerReport, object]:
    if settings.devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(settings.devices)
    # The order of the driver's own tools, so that the n-th device means the same to everybody.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    # Imported here: it needs AVX2 and libgomp, and reads the devices when it is loaded.
    import xllamacpp  # noqa: PLC0415

    if settings.gpu_layers and not sees_gpu():
        return WorkerReport(error=NO_GPU), None
    params = xllamacpp.CommonParams()
    params.model.path = settings.model_path
    params.n_parallel = settings.slots
    params.n_ctx = settings.slots * settings.ctx_per_slot
    params.kv_unified = False
    params.n_batch = params.n_ubatch = batch_tokens(settings.slots, settings.gpu_layers)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.n_threads_http = settings.slots + _SPARE_HTTP_THREADS
    params.n_gpu_layers = settings.gpu_layers if settings.gpu_layers >= 0 else 1_000
    if settings.tensor_split:
        weights = params.tensor_split
        params.tensor_split = [
            *map(float, settings.tensor_split),
            *weights[len(settings.tensor_split) :],
        ]
    params.cache_type_k = params.cache_type_v = _cache_type(xllamacpp, settings.kv_type)
    if settings.draft_model_path:
        _draft(xllamacpp, params, settings)
    params.cache_ram_mib = 0
    params.ctx_shift = params.fit_params = params.warmup = params.ui = False
    params.endpoint_slots = params.endpoint_metrics = params.offline = True
    verbosity = _verbosity(xllamacpp.xllamacpp.__file__)
    params.verbosity = _SERVING_VERBOSITY if verbosity is None else _LOADING_VERBOSITY
    params.api_keys = [settings.api_key]
    server = xllamacpp.Server(params)
    if verbosity is not None:
        verbosity.value = _SERVING_VERBOSITY
    return WorkerReport(base_url=server.listening_address, version=xllamacpp.__version__), server


def _draft(library: Any, params: Any, settings: WorkerSettings) -> None:
    """Has a small model propose tokens, which the model itself accepts or not."""
    kinds = library.common_speculative_type
    params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    draft = params.speculative.draft
    draft.mparams.path = settings.draft_model_path
    draft.n_gpu_layers = 1_000 if settings.gpu_layers else 0
    draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = settings.threads


def _cache_type(library: Any, name: str) -> object:
    return getattr(library.ggml_type, f"GGML_TYPE_{name.upper()}")


def _verbosity(library: str) -> ctypes.c_int | None:
    """llama.cpp's threshold for log lines, None where this build does not show it."""
    try:
        return ctypes.c_int.in_dll(ctypes.CDLL(library), _VERBOSITY_SYMBOL)
    except (OSError, ValueError):
        return None


def _write_log_out() -> None:
    """Waits until llama.cpp's log thread has written down why a load failed.

    An exit does not wait for it: its logger is never destroyed. A build that shows no such
    functions may lose its last lines.
    """
    library = sys.modules.get("xllamacpp.xllamacpp")
    if library is None or library.__file__ is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        functions = ctypes.CDLL(library.__file__)
        log, flush = functions[_LOG_SYMBOL], functions[_FLUSH_SYMBOL]
        log.restype, flush.argtypes, flush.restype = ctypes.c_void_p, [ctypes.c_void_p], None
        flush(log())


if __name__ == "__main__":
    main()
