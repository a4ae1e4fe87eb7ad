"""LO-201, LO-205: model x device x quantization x context, against a judge written apart.

The judge knows the models by the closed formula of each, compares versions by hand, counts in
fractions, and shares no code with what it judges.
"""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from pool_managerd.core.kv_size import CacheType
from tests.integration.compatibility.matrix import (
    CTX_MAX,
    FLEET,
    GIB,
    MODELS,
    SLOTS,
    Cell,
    verdicts,
)

ROOT = Path(__file__).parents[3]
BYTES_PER_ELEMENT = {
    CacheType.F16: Fraction(2),
    CacheType.Q8_0: Fraction(34, 32),
    CacheType.Q4_0: Fraction(18, 32),
}


def elements(model: str, tokens: int, *, bounded: bool) -> int:
    """Cached elements of a context; `bounded` ends the growth of layers that slide."""
    match model:
        case "llama-3-8b":
            return tokens * 32 * 2 * 8 * 128
        case "deepseek-v3":
            return tokens * 61 * (512 + 64)
        case "gemma-2-2b":
            # A window of 4,096 and a batch of 256 are 17 times 256 cells.
            slid = min(tokens, 17 * 256) if bounded else tokens
            return (13 * tokens + 13 * slid) * 2 * 4 * 256
        case "gpt-oss-20b":
            # A window of 128 and a batch of 256 round up to 512 cells.
            slid = min(tokens, 512) if bounded else tokens
            return (12 * tokens + 12 * slid) * 2 * 8 * 64
    raise AssertionError(model)


def judged_bytes(cell: Cell) -> int | None:
    """Every token at its full price, but no more than a slot has where the pool states it."""
    if cell.required_ctx is None:
        return None
    price = BYTES_PER_ELEMENT[cell.cache]
    tokens = elements(cell.model, cell.required_ctx, bounded=False) * price
    if not cell.preallocated and cell.model in {"llama-3-8b", "deepseek-v3"}:
        return int(tokens)
    return int(min(tokens, elements(cell.model, CTX_MAX, bounded=True) * price))


def judged_reasons(cell: Cell) -> set[str]:
    """Why the pool cannot serve the job."""
    devices, capability = FLEET[cell.pool]
    reasons = set()
    if cell.quantization == "F16":
        reasons.add("quantization")
    if cell.required_ctx is not None and cell.required_ctx > CTX_MAX:
        reasons.add("context")
    for device in devices:
        if cell.mask and device not in cell.mask:
            reasons.add("device_mask")
    if cell.min_cap is not None:
        major, minor = [int(part) for part in (capability or "0.0").split(".")]
        if major < cell.min_cap[0] or (major == cell.min_cap[0] and minor < cell.min_cap[1]):
            reasons.add("compute_cap")
    reasons |= judged_memory(cell)
    return reasons


def judged_memory(cell: Cell) -> set[str]:
    """What does not fit: into all memory, or by the split into that of one device."""
    devices, _ = FLEET[cell.pool]
    total = sum(gib for gib, _ in devices.values()) * GIB
    weights = sum(weight for _, weight in devices.values())
    kv = judged_bytes(cell)
    reasons, split = set(), []
    if cell.min_vram_gib is not None:
        split.append(cell.min_vram_gib * GIB)
        if cell.min_vram_gib * GIB > total:
            reasons.add("vram_total")
    if kv is not None and cell.preallocated:
        slot = elements(cell.model, CTX_MAX, bounded=True) * BYTES_PER_ELEMENT[cell.cache]
        if kv > SLOTS * slot:
            reasons.add("kv_total")
    elif kv is not None:
        split.append(kv)
        if total and kv > total:
            reasons.add("kv_total")
    for gib, weight in devices.values():
        if weights and any(Fraction(weight, weights) * size > gib * GIB for size in split):
            reasons.add("device_share")
    return reasons


@pytest.mark.parametrize("model", MODELS)
def test_every_entry_of_the_matrix_is_judged_alike(model: str) -> None:
    """The same size of keys and values, and the same reasons, for each of 9,072 entries."""
    found = verdicts(model)

    for cell, needed, reasons in found:
        assert needed == judged_bytes(cell), cell
        assert reasons == judged_reasons(cell), cell
    assert len(found) == 9_072
    assert sum(not reasons for _, _, reasons in found) > 500


def test_the_matrix_meets_every_kind_of_shortfall() -> None:
    """No rule is left out because no entry touches it."""
    met = {reason for model in MODELS for _, _, reasons in verdicts(model) for reason in reasons}

    assert met == {
        "quantization",
        "context",
        "device_mask",
        "compute_cap",
        "vram_total",
        "kv_total",
        "device_share",
    }


@pytest.mark.parametrize("model", MODELS)
def test_a_preallocated_slot_holds_every_job_that_its_context_holds(model: str) -> None:
    """An estimate that the pool's own numbers give never starves a job: free memory is its own."""
    bounded = [
        entry for entry in verdicts(model) if entry[0].preallocated and entry[0].required_ctx
    ]

    assert bounded
    for cell, needed, reasons in bounded:
        slot = elements(model, CTX_MAX, bounded=True) * BYTES_PER_ELEMENT[cell.cache]
        assert needed is not None
        assert needed <= slot
        assert "kv_total" not in reasons


def test_verdicts_do_not_depend_on_the_hash_seed() -> None:
    """Processes with different string hashes write the same shortfalls, to the letter."""
    program = "from tests.integration.compatibility.matrix import digest\nprint(digest())"
    paths = f"{ROOT}:{ROOT / 'proto'}"
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONPATH": paths, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert len(answers) == 1
