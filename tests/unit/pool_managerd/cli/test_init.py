"""The configuration that `init` writes where there is none: one for this machine, that loads."""

import struct
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pool_managerd import __main__ as command
from pool_managerd.cli import init as first
from pool_managerd.cli.init import Machine, first_config, look
from pool_managerd.config.loading import load_config
from pool_managerd.core.device import Device, DeviceHealth, DeviceKind
from pool_managerd.devices.port import DeviceSource, OnChange, OnFault
from pool_managerd.errors import DevicesUnavailableError
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


def gguf(**texts: str) -> bytes:
    """A file with these texts and no tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        text(key.replace("_", ".")) + struct.pack("<I", 8) + text(value)
        for key, value in texts.items()
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs)


async def test_models_beside_the_configuration_are_found(tmp_path: Path) -> None:
    """The first, with its own context where that is short."""
    write_tiny_model(tmp_path / "b.gguf", TinyShape(context=512))
    write_tiny_model(tmp_path / "c.gguf")
    (tmp_path / "a.txt").write_bytes(b"GGUF")

    machine = await look(tmp_path, NoGpus())
    (pool,) = tomllib.loads(first_config(machine))["pools"]

    assert (machine.models, machine.left_out) == (("b.gguf", "c.gguf"), ())
    assert machine.no_gpu == "the driver is not installed:\nlibnvidia-ml.so.1"
    assert (pool["engine"]["model_path"], pool["engine"]["ctx_per_slot"]) == ("b.gguf", 512)


async def test_files_that_are_no_models_are_left_out_and_named(tmp_path: Path) -> None:
    """Each with the reason, as a comment; what belongs to a model needs none."""
    write_tiny_model(tmp_path / "z-00001-of-00002.gguf")
    whole = (tmp_path / "z-00001-of-00002.gguf").read_bytes()
    for name, content in {
        "z-00002-of-00002.gguf": whole,
        "a-mmproj.gguf": whole,
        "b-00002-of-00002.gguf": whole,
        "c-00001-of-00002.gguf": whole,
        "d.gguf": b"<html>not found</html>",
        "e.gguf": whole[: len(whole) // 2],
        "f.gguf": whole[:30],
        "g.gguf": gguf(general_type="adapter"),
        "h.gguf": gguf(general_architecture="llama"),
        "i.gguf": gguf(general_type="\x1b[2Jvocab"),
    }.items():
        (tmp_path / name).write_bytes(content)

    machine = await look(tmp_path, NoGpus())
    text = first_config(machine)

    assert machine.models == ("z-00001-of-00002.gguf",)
    assert [told.split(" ", 1) for told in machine.left_out] == [
        ["a-mmproj.gguf", "is the projector of another model"],
        ["b-00002-of-00002.gguf", "is a part of a model of which b-00001-of-00002.gguf is missing"],
        ["c-00002-of-00002.gguf", "does not exist"],
        ["d.gguf", "is not a GGUF file"],
        ["e.gguf", "cannot be understood: ends before its tensors do"],
        ["f.gguf", "cannot be understood: ends within its metadata"],
        ["g.gguf", "is of the type adapter, it is no model by itself"],
        ["h.gguf", "holds no weights"],
        ["i.gguf", "is of the type vocab, it is no model by itself"],
    ]
    assert len(tomllib.loads(text)["pools"]) == 1
    for told in machine.left_out:
        assert f"# Left out: {told}\n" in text


async def test_a_folder_of_very_many_files_is_looked_at_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not looked at is counted."""
    monkeypatch.setattr(first, "MODELS_READ_MAX", 2)
    for name in "abcd":
        (tmp_path / f"{name}.gguf").write_bytes(b"")

    machine = await look(tmp_path, NoGpus())

    assert machine.models == ()
    assert machine.left_out[2:] == ("2 more GGUF files, which were not looked at",)


def processor() -> DeviceSource:
    """Stands in for NVML: a machine without it."""
    return NoGpus()


@pytest.mark.parametrize("emptied", [False, True])
def test_init_writes_a_configuration_and_check_takes_it(
    emptied: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also into an empty file; what to do next is told."""
    monkeypatch.setattr(command, "nvidia_devices", processor)
    write_tiny_model(tmp_path / "tiny.gguf")
    path = tmp_path / "pool-managerd.toml"
    if emptied:
        path.touch()

    code = command.main(["init", "--config", str(path)])
    told = capsys.readouterr()
    again = command.main(["check", "--config", str(path)])

    assert (code, again, told.out) == (0, 0, "")
    assert f"{path} is written, a first configuration" in told.err
    assert f"pool-managerd check --config {path}\n" in told.err
    text = path.read_text(encoding="utf-8")
    assert "# No NVIDIA GPU: the driver is not installed: libnvidia-ml.so.1\n" in text
    assert "pool cpu: ok" in capsys.readouterr().out


def test_a_configuration_that_is_not_named_by_its_option_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Instead of a look at the default one."""
    with pytest.raises(SystemExit) as caught:
        command.main(["check", "mine.toml"])

    assert caught.value.code == 2
    assert "what is mine.toml? A configuration is named by --config FILE" in capsys.readouterr().err


def test_init_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration, whatever it is worth; and a folder that is missing is told."""
    monkeypatch.setattr(command, "nvidia_devices", processor)
    path = tmp_path / "mine.toml"
    path.write_text("mine", encoding="utf-8")

    code = command.main(["init", "--config", str(path)])
    told = capsys.readouterr().err
    nowhere = command.main(["init", "--config", str(tmp_path / "no" / "p.toml")])

    assert (code, nowhere, path.read_text(encoding="utf-8")) == (2, 2, "mine")
    assert "mine.toml is there, and stays as it is: `pool-managerd check`" in told
    assert "p.toml: No such file or directory" in capsys.readouterr().err


def test_check_into_the_configuration_itself_says_that_it_is_lost(tmp_path: Path) -> None:
    """The shell has emptied the file; nothing is written over what may still be saved."""
    path = tmp_path / "p.toml"
    path.write_text("precious", encoding="utf-8")
    words = ("-m", "pool_managerd", "check", "--config", str(path))

    with path.open("w", encoding="utf-8") as output:
        ended = subprocess.run(
            [sys.executable, *words], stdout=output, stderr=subprocess.PIPE, text=True, check=False
        )

    assert (ended.returncode, path.read_text(encoding="utf-8")) == (2, "")
    assert f"{path}: this is where standard output goes, so the shell has emptied it" in (
        ended.stderr
    )


def test_check_without_a_standard_output_judges_all_the_same(tmp_path: Path) -> None:
    """As some supervisors start what they start: the exit code alone tells."""
    path = tmp_path / "p.toml"
    path.write_text(
        'devices = "cpu"\n[[pools]]\npool_id = "p"\n[pools.engine]\nkind = "mock"\n',
        encoding="utf-8",
    )
    words = (sys.executable, "-m", "pool_managerd", "check", "--config", str(path))

    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words],  # noqa: S607 - the shell of this machine
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("word", ["check", "run"])
def test_without_a_configuration_init_is_named(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is made up: what is started has to be somebody's choice."""
    code = command.main([word, "--config", str(tmp_path / "absent.toml")])
    told = capsys.readouterr()

    assert (code, told.out) == (2, "")
    assert "`pool-managerd init` writes one for this machine" in told.err
