"""Holds GPU memory until standard input ends: `python -m tests.gpu.allocate BYTES`.

CUDA_VISIBLE_DEVICES says on which device. Plain allocations of the driver API; no CUDA toolkit.
"""

import ctypes
import sys

CHUNK_BYTES = 256 << 20


def main() -> int:
    """Allocates, prints "allocated", waits, frees, prints "freed"."""
    wanted_bytes = int(sys.argv[1])
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, addresses = ctypes.c_int(), ctypes.c_void_p(), []
    _call(cuda, "cuInit", 0)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(cuda, "cuCtxSetCurrent", context)
    # The context takes memory of its own, which is none of what is measured.
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    while wanted_bytes > 0:
        address, size = ctypes.c_uint64(), min(wanted_bytes, CHUNK_BYTES)
        _call(cuda, "cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        addresses.append(address)
        wanted_bytes -= size
    sys.stdout.write("allocated\n")
    sys.stdout.flush()
    sys.stdin.read()
    for address in addresses:
        _call(cuda, "cuMemFree_v2", address)
    return 0


def _call(cuda: ctypes.CDLL, name: str, *arguments: object) -> None:
    code = getattr(cuda, name)(*arguments)
    if code:
        sys.exit(f"{name} failed with CUDA error {code}")


if __name__ == "__main__":
    sys.exit(main())
