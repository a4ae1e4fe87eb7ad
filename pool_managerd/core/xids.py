"""XID errors of NVIDIA GPUs: which of them mean that the device itself is broken. ORCH-3040.

All others (13, 31, 43, 45, 63, 68, 94, 109 and so on) concern one program or are notes of the
driver: they are shown and logged, and the engine's own supervision sees what became of it.

Source: NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors) for the numbers; the choice is
ours: what points at the device or its driver, and for which health checks of GPU fleets drain.
"""

from collections.abc import Mapping
from types import MappingProxyType

CRITICAL_XIDS: Mapping[int, str] = MappingProxyType(
    {
        46: "the GPU stopped processing",
        48: "an uncorrectable memory error",
        62: "the power controller halted",
        64: "a memory row could not be remapped",
        74: "an NVLink error",
        79: "the GPU fell off the bus",
        95: "an uncontained memory error",
        110: "a security fault",
        119: "the GPU's system processor timed out",
        120: "the GPU's system processor failed",
        136: "link training failed",
        140: "an unrecovered memory error",
        143: "the GPU could not be initialised",
    }
)


def xid_sentence(xid: int) -> str:
    """One sentence about a critical XID, with what to do."""
    return (
        f"the GPU reported XID {xid} ({CRITICAL_XIDS[xid]}): look at the kernel log (dmesg) and, "
        "if it comes again, reset the GPU or the machine"
    )
