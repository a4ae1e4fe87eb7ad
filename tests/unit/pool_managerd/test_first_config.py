"""The configuration that `check` prints where there is none: one for this machine, that loads."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pool_managerd import __main__ as command
from pool_managerd.config_loading import load_config
from pool_managerd.core.device import Device, DeviceHealth, DeviceKind
from pool_managerd.devices.port import DeviceSource, OnChange, OnFault
from pool_managerd.errors import DevicesUnavailableError
from pool_managerd.first_config import Machine, first_config, look
from pool_managerd.models.tiny_gguf import TinyShape, write_tiny_model

GPUS = (
    Device("GPU-a", DeviceKind.GPU, "RTX 3070", 0),
    Device("GPU-b", DeviceKind.GPU, 'a "quoted"\nname', 1),
    Device("MIG-c", DeviceKind.MIG, "H200", 2, parent_device_id="GPU-c", slice_index=1),
)
LOST = replace(GPUS[0], device_id="GPU-d", index=3).unwell(DeviceHealth.LOST, "it fell off the bus")
PROGRAMS = {"llama-server": "/opt/a b/llama-server", "vllm": "/opt/vllm", "ollama": "/opt/ollama"}


class NoGpus:
    """A machine without a driver."""

    async def start(self, on_fault: OnFault, on_change: OnChange) -> None:
        """Says so."""
        raise DevicesUnavailableError("the driver is not installed:\nlibnvidia-ml.so.1")

    def devices(self) -> tuple[Device, ...]:
        """None."""
        return ()

    def read_at_ms(self) -> int:
        """Never."""
        return 0

    async def stop(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("gpus", [(), GPUS, (LOST,), (*GPUS, LOST)], ids=len)
@pytest.mark.parametrize("program", [*PROGRAMS, ""])
@pytest.mark.parametrize("lacking", [(), ("the library libgomp.so.1 is missing",)], ids=len)
def test_what_is_printed_is_a_configuration(
    gpus: tuple[Device, ...], program: str, lacking: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever was found: it loads, with a pool for each GPU that is well."""
    machine = Machine(
        gpus=gpus,
        no_gpu="" if gpus else "none",
        programs={program: PROGRAMS[program]} if program else {},
        lacking=lacking,
        models=('a "b".gguf',),
    )
    (tmp_path / "c.toml").write_text(first_config(machine), encoding="utf-8")

    config = load_config(tmp_path / "c.toml", {})

    well = [gpu.device_id for gpu in gpus if gpu.health is DeviceHealth.OK]
    assert config.devices == ("nvml" if well else "cpu")
    if well and config.pools[0].engine.kind != "ollama":
        assert [pool.devices for pool in config.pools] == [(device_id,) for device_id in well]
    else:
        assert [pool.devices for pool in config.pools] == [()]


@pytest.mark.parametrize(
    ("machine", "kind", "engine"),
    [
        (Machine(threads=3), "embedded", {"threads": 3}),
        (Machine(programs=PROGRAMS), "embedded", {"threads": 1}),
        (Machine(programs=PROGRAMS, lacking=("x",)), "llama_server", {"gpu_layers": 0}),
        (Machine(gpus=GPUS[:1], programs=PROGRAMS), "llama_server", {"gpu_layers": -1}),
        (Machine(gpus=GPUS[:1], embedded_gpu=True), "embedded", {"gpu_layers": -1}),
        (Machine(gpus=GPUS[:1], programs={"vllm": "/v"}), "openai", {"flavor": "vllm"}),
        (Machine(gpus=GPUS[:1], programs={"ollama": "/o"}), "ollama", {"slots": 1}),
        # No engine that could use the GPU: one that runs, and says what is missing.
        (Machine(gpus=GPUS[:1]), "embedded", {"gpu_layers": 0}),
    ],
)
def test_the_engine_is_one_that_uses_what_there_is(
    machine: Machine, kind: str, engine: dict[str, object]
) -> None:
    """A GPU is not left aside for the processor, nor an engine named that could not start."""
    (pool,) = tomllib.loads(first_config(machine))["pools"]

    assert pool["engine"]["kind"] == kind
    assert pool["engine"].items() >= engine.items()


async def test_models_beside_the_configuration_are_found(tmp_path: Path) -> None:
    """The first, with its own context where that is short; no projector, no later part."""
    write_tiny_model(tmp_path / "b.gguf", TinyShape(context=512))
    for name in ("c-00001-of-00002.gguf", "c-00002-of-00002.gguf", "a-mmproj.gguf", "a.txt"):
        (tmp_path / name).write_bytes(b"GGUF")

    machine = await look(tmp_path, NoGpus())
    (pool,) = tomllib.loads(first_config(machine))["pools"]

    assert machine.models == ("b.gguf", "c-00001-of-00002.gguf")
    assert machine.no_gpu == "the driver is not installed:\nlibnvidia-ml.so.1"
    assert (pool["engine"]["model_path"], pool["engine"]["ctx_per_slot"]) == ("b.gguf", 512)


def processor() -> DeviceSource:
    """Stands in for NVML: a machine without it."""
    return NoGpus()


@pytest.mark.parametrize("made_by_the_shell", [False, True])
def test_check_without_a_configuration_prints_one_that_can_be_kept(
    made_by_the_shell: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing else is on standard output; a redirect has made the file by then. Exit code 2."""
    monkeypatch.setattr(command, "nvidia_devices", processor)
    write_tiny_model(tmp_path / "tiny.gguf")
    path = tmp_path / "pool-managerd.toml"
    if made_by_the_shell:
        path.touch()

    code = command.main(["check", "--config", str(path)])
    told = capsys.readouterr()
    path.write_text(told.out, encoding="utf-8")
    again = command.main(["check", "--config", str(path)])

    assert (code, again) == (2, 0)
    assert f"pool-managerd check --config {path} > {path}" in told.err
    assert "# No NVIDIA GPU: the driver is not installed: libnvidia-ml.so.1\n" in told.out
    assert "pool cpu: ok" in capsys.readouterr().out


def test_check_without_a_configuration_answers_in_json_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One object, as of a configuration that is there."""
    monkeypatch.setattr(command, "nvidia_devices", processor)
    path = tmp_path / "absent.toml"

    code = command.main(["check", "--json", "--config", str(path)])
    answer = json.loads(capsys.readouterr().out)

    assert (code, answer["exit_code"]) == (2, 2)
    assert str(path) in answer["fatal"][0]
    assert tomllib.loads(answer["configuration"])["pools"]


def test_a_start_without_a_configuration_names_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints nothing to keep: what it starts has to be somebody's choice."""
    code = command.main(["--config", str(tmp_path / "absent.toml")])
    told = capsys.readouterr()

    assert (code, told.out) == (2, "")
    assert "`pool-managerd check` prints one for this machine" in told.err
