"""What llama.cpp's log says of memory. ORCH-3039."""

import pytest

from pool_managerd.engines.llama_memory import MemoryLog

MIB = 1 << 20
# As a CUDA build with two devices and some layers on the host writes it.
LINES = """
0.00.009.819 W load: model vocab missing newline token, using special_pad_id instead
0.00.014.603 I load_tensors:   CPU_Mapped model buffer size =   100.50 MiB
0.00.014.604 I load_tensors:        CUDA0 model buffer size =  2000.00 MiB
0.00.014.605 I load_tensors:        CUDA1 model buffer size =  1000.25 MiB
0.00.020.369 I llama_context:  CUDA_Host  output buffer size =     0.50 MiB
0.00.020.507 I llama_kv_cache:      CUDA0 KV buffer size =    64.00 MiB
0.00.020.508 I llama_kv_cache:      CUDA0 KV buffer size =    32.00 MiB
0.00.020.509 I llama_memory_recurrent:      CUDA1 RS buffer size =    16.00 MiB
0.00.022.799 I sched_reserve:      CUDA0 compute buffer size =   300.00 MiB
0.00.022.800 I sched_reserve:      CUDA0 compute buffer size =   200.00 MiB
0.00.022.801 I sched_reserve:      CUDA1 compute buffer size =   100.00 MiB
0.00.022.802 I sched_reserve:  CUDA_Host compute buffer size =     8.00 MiB
""".splitlines()


def test_sizes_are_told_by_device() -> None:
    """Caches add up, what is laid out anew counts once, pinned memory is the host's."""
    memory = MemoryLog()
    for line in LINES:
        memory.read(line)

    assert memory.host_bytes == 109 * MIB
    assert memory.device_bytes == (2_296 * MIB, int(1_116.25 * MIB))
    assert memory.purpose_bytes("KV") == 96 * MIB


def test_an_engine_that_says_nothing_took_an_unknown_amount() -> None:
    """Not 0."""
    memory = MemoryLog()
    memory.read("buffer size = lots")

    assert memory.host_bytes is None
    assert memory.device_bytes == ()


def test_what_is_kept_is_bounded() -> None:
    """Whatever the process writes."""
    memory = MemoryLog()
    for number in range(5_000):
        memory.read(f"x: X{number} model buffer size = 1.00 MiB")

    assert memory.purpose_bytes("model") == 1_024 * MIB


@pytest.mark.parametrize("size", ["9" * 400, "9" * 30, "1" + "0" * 10])
def test_a_size_that_no_memory_has_says_nothing(size: str) -> None:
    """What reads the log must not break at what an engine writes there."""
    memory = MemoryLog()
    memory.read(f"x:  CUDA0 compute buffer size = {size}.00 MiB")

    assert memory.host_bytes is None
    assert memory.purpose_bytes("compute") == 0


def test_a_draft_model_takes_nothing_from_what_the_model_took() -> None:
    """Its buffers have the same names; both are there."""
    log = MemoryLog()
    own = "sched_reserve:        CPU compute buffer size =     8.00 MiB"
    for line in (own, "loading draft model '/m/d.gguf'", own.replace("8.00", "2.00")):
        log.read(line)

    assert log.purpose_bytes("compute") == log.host_bytes == 10 * MIB
