"""Builds the stub of NVML and scripts what it answers; see nvml_stub.c for the script's lines."""

import collections
import os
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")
LIBRARY = "libnvidia-ml.so.1"
CUDA_SOURCE = Path(__file__).with_name("cuda_stub.c")
CUDA_LIBRARY = "libcuda.so.1"
NO_COMPILER = "no C compiler (cc) on this machine: the stub of NVML cannot be built"
GIB = 1 << 30


def compiler() -> str | None:
    """The system's C compiler."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path, *, old_driver: bool = False) -> Path:
    """Compiles the stub into `folder` and returns it, to be put into LD_LIBRARY_PATH.

    Raises:
        RuntimeError: when there is no compiler, or it fails.
    """
    cc = compiler()
    if cc is None:
        raise RuntimeError(NO_COMPILER)
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    old = ["-DOLD_DRIVER"] if old_driver else []
    for library, source in ((LIBRARY, SOURCE), (CUDA_LIBRARY, CUDA_SOURCE)):
        command = [cc, *flags, *old, "-o", str(folder / library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile: {done.stderr}")
    return folder


@dataclass(frozen=True)
class Gpu:
    """One GPU, or a slice, of the script: `lines` by key, `slices` (None: an empty index)."""

    uuid: str
    lines: dict[str, str] = field(default_factory=dict)
    slices: tuple["Gpu | None", ...] = ()
    fails: tuple[tuple[str, int], ...] = ()

    def having(self, **lines: str | None) -> "Gpu":
        """The same with other lines; None takes one away."""
        merged = {**self.lines, **{k: v for k, v in lines.items() if v is not None}}
        return replace(self, lines={k: v for k, v in merged.items() if lines.get(k, v) is not None})

    def failing(self, function: str, code: int) -> "Gpu":
        """The same, of which a function (or "*") answers with an error."""
        return replace(self, fails=(*self.fails, (function, code)))

    def text(self, kind: str = "gpu") -> str:
        """Its lines of the script."""
        own = [f"{kind} {self.uuid}", *(f"{key} {value}" for key, value in self.lines.items())]
        own += [f"fail {function} {code}" for function, code in self.fails]
        parts = ["hole" if part is None else part.text("mig") for part in self.slices]
        return "\n".join([*own, *parts])


def h200(name: str = "a", index: int = 0) -> Gpu:
    """A GPU that reports everything."""
    return Gpu(
        f"GPU-{name}",
        {
            "name": "NVIDIA H200",
            "capability": "9 0",
            "memory": f"{140 * GIB} {100 * GIB + index} {39 * GIB} {GIB}",
            "utilization": "50",
            "temperature": "61",
            "power": "350000",
            "clocks": "1500 2600",
            "max_clocks": "2000 2600",
            "reasons": "0",
            "ecc": "1 7",
            "recovery": "0",
            "mig_mode": "0",
        },
    )


@dataclass
class StubDriver:
    """A driver under script. Its files are in `folder`."""

    folder: Path
    library: Path
    head: tuple[str, ...] = ("driver 580.65.06", "cuda 13000")
    gpus: tuple[Gpu, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see it: the environment of this one and the stub's."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library),
            "NVML_STUB_SCRIPT": str(self.folder / "script"),
            "NVML_STUB_CALLS": str(self.folder / "calls"),
            "NVML_STUB_ALLOCATED": str(self.folder / "allocated"),
        }

    def set(self, *gpus: Gpu, head: tuple[str, ...] = ()) -> None:
        """Replaces the script; `head` is added to its first lines."""
        self.gpus = gpus
        new = self.folder / "script.new"
        text = "\n".join([*self.head, *head, *(gpu.text() for gpu in gpus)])
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(self.folder / "script")

    def calls(self) -> collections.Counter[str]:
        """How often each function was called since `forget_calls`."""
        path = self.folder / "calls"
        lines = path.read_text(encoding="utf-8").split() if path.exists() else []
        return collections.Counter(lines)

    def forget_calls(self) -> None:
        """Starts the counting over."""
        (self.folder / "calls").open("w").close()
