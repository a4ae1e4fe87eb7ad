"""Whose memory ran out, from what an engine said: the one place that knows the words. ORCH-3039.

a line of a log    phrases that name one kind of memory without doubt: most lines mean nothing
an error answer    these, and loose words too: something did fail, and it says why
"""

import enum
import re
from collections.abc import Iterable


class Memory(enum.Enum):
    """A kind of memory that is exhausted; the value is how people call it."""

    DEVICE = "device"
    HOST = "host"


# Source: CUDA runtime and driver API (cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY,
# CUBLAS_STATUS_ALLOC_FAILED), Vulkan's VkResult, PyTorch's CUDACachingAllocator and
# OutOfMemoryError, ggml's backends ("allocating 512.00 MiB on device 0: cudaMalloc failed: out of
# memory"), vLLM's memory check.
_DEVICE = (
    "cuda out of memory",
    "hip out of memory",
    "cuda error: out of memory",
    "cudamalloc failed: out of memory",
    "cudaerrormemoryallocation",
    "cuda_error_out_of_memory",
    "cublas_status_alloc_failed",
    "torch.outofmemoryerror",
    "torch.cuda.outofmemoryerror",
    "erroroutofdevicememory",
    "unable to allocate cuda",
    "failed to allocate cuda",
    "no available memory for the cache blocks",
    "is less than desired gpu memory utilization",
)
# Source: the C++ and Python runtimes, errno ENOMEM, Vulkan, PyTorch's CPU allocator, ggml.
_HOST = (
    "std::bad_alloc",
    "cannot allocate memory",
    "memoryerror",
    "erroroutofhostmemory",
    "defaultcpuallocator: can't allocate memory",
    "unable to allocate cpu",
    "failed to allocate cpu",
)


# Source: llama.cpp, Ollama, vLLM, TensorRT-LLM and Triton's Python backend, in answers to requests.
_LOOSE = (
    "out of memory",
    "outofmemory",
    "failed to allocate",
    "bad_alloc",
    "requires more system memory",
    "no space left on device",
    "failed to increase the shared memory pool",
)
# Triton says "no space left on device" of the host's shared memory.
_ON_DEVICE = re.compile(r"cuda|gpu|vram|\bhip|vulkan|cublas|cudnn|nccl|(?<!left on )device")


def exhausted(lines: Iterable[str]) -> Memory | None:
    """The memory that ran out by the last line that says so, or None. Linear in the text."""
    found = (_named(line.lower()) for line in reversed(tuple(lines)))
    return next((memory for memory in found if memory is not None), None)


def exhausted_by_error(message: str) -> Memory | None:
    """The memory that ran out by the message of an error, or None."""
    lowered = message.lower()
    if (memory := _named(lowered)) is not None:
        return memory
    if not any(words in lowered for words in _LOOSE):
        return None
    return Memory.DEVICE if _ON_DEVICE.search(lowered) else Memory.HOST


def _named(lowered: str) -> Memory | None:
    # Device first: PyTorch's message of a full GPU may go on about the host's allocator.
    if any(phrase in lowered for phrase in _DEVICE):
        return Memory.DEVICE
    return Memory.HOST if any(phrase in lowered for phrase in _HOST) else None
