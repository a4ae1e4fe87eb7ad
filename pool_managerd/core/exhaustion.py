"""Whose memory ran out, from what an engine said before it ended. ORCH-3039.

Engines say it in words only. A phrase belongs here when it names one kind of memory without doubt.
"""

import enum
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


def exhausted(lines: Iterable[str]) -> Memory | None:
    """The memory that ran out by the last line that says so, or None. Linear in the text."""
    for line in reversed(tuple(lines)):
        lowered = line.lower()
        # Device first: PyTorch's message of a full GPU may go on about the host's allocator.
        if any(phrase in lowered for phrase in _DEVICE):
            return Memory.DEVICE
        if any(phrase in lowered for phrase in _HOST):
            return Memory.HOST
    return None
