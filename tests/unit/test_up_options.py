"""`make up`: what may be said, and mistakes in the words of make's variables."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from demo import up_options
from demo.up_options import OptionsError, parse
from pool_managerd.models.tiny_gguf import TinyShape, write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
FREE = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--ctx", "abc"), "make up: CTX must be a whole number of at least 1, is 'abc'"),
        (("--slots", "0"), "make up: SLOTS must be a whole number of at least 1, is '0'"),
        (("--threads", "0"), "make up: THREADS must be a whole number of at least 1, is '0'"),
        (("--gpu-layers", "-2"), "GPU_LAYERS must be a whole number of at least -1, is '-2'"),
        (("--devices", "gpu"), "make up: DEVICES must be cpu or nvml, is 'gpu'"),
        (("--metrics-listen", "7072"), "METRICS_LISTEN must be HOST:PORT, such as 127.0.0.1:7070"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(
    words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the variable, and no option that nobody typed."""
    with pytest.raises(SystemExit) as caught:
        parse(words)
    told = capsys.readouterr().err

    assert (caught.value.code, told.count("\n")) == (2, 1)
    assert line in told


def test_a_file_that_is_no_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A document, a download that broke off, and nothing at all."""
    write_tiny_model(tmp_path / "cut.gguf")
    whole = (tmp_path / "cut.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])

    for path, told in (
        (ROOT / "README.md", "README.md is not a GGUF file; give the path of a GGUF model"),
        (tmp_path / "cut.gguf", "cut.gguf cannot be understood: ends before its tensors do"),
        (tmp_path / "none.gguf", "none.gguf is not a file; give the path of a GGUF model"),
    ):
        with pytest.raises(OptionsError, match=r"^MODEL: ") as caught:
            parse(("--model", str(path), *FREE))
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("ctx", "set_", "note"),
    [
        ((), 512, ""),
        (("--ctx", "256"), 256, ""),
        (("--ctx", "9000"), 512, "CTX=9000 is more than the model has: 512 tokens are set\n"),
    ],
)
def test_the_context_is_one_that_the_model_has(
    ctx: tuple[str, ...], set_: int, note: str, tmp_path: Path
) -> None:
    """What is written into the configuration is what is served."""
    write_tiny_model(tmp_path / "m.gguf", TinyShape(context=512))

    options, told = parse(("--model", str(tmp_path / "m.gguf"), *ctx, *FREE))

    assert (options.pools[0].ctx_per_slot, told) == (set_, note)
    assert options.model_id == "m"


def test_layers_on_a_gpu_that_is_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the document that says how to have one."""
    monkeypatch.setattr(up_options, "gpu_shortfalls", lambda layers: ["no GPU"] if layers else [])

    with pytest.raises(OptionsError, match=r"GPU_LAYERS=-1: .* sees no GPU; .*docs/engines.md#"):
        parse(("--gpu-layers", "-1", *FREE))
    assert parse(FREE)[0].pools[0].gpu_layers == 0


def test_an_engine_that_cannot_run_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is in the sentence."""
    missing = "the library libgomp.so.1 is missing: install libgomp1"
    monkeypatch.setattr(up_options, "embedded_shortfalls", lambda: [missing])

    with pytest.raises(OptionsError, match=f"the engine cannot run here: {missing}"):
        parse(FREE)


def test_an_address_that_cannot_be_used_names_its_variable() -> None:
    """One that is in use, one of another machine, which nobody is asked, and one of no host."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OptionsError, match=f"^METRICS_LISTEN {address} is in use"):
            parse(("--listen", "127.0.0.1:0", "--metrics-listen", address))
    with pytest.raises(OptionsError, match=r"^LISTEN 192\.0\.2\.7:7070: Cannot assign"):
        parse(("--listen", "192.0.2.7:7070"))
    with pytest.raises(OptionsError, match=r"^LISTEN no\.such\.invalid:7070: "):
        parse(("--listen", "no.such.invalid:7070"))


def test_a_variable_that_make_up_does_not_know_is_refused() -> None:
    """A misspelt MODEL must not serve the tiny model without a word."""
    made = subprocess.run(
        ["make", "-n", "up", "MODELS=x.gguf", "CTX=5"],  # noqa: S607 - the make of this machine
        cwd=ROOT,
        # Without the variables of the make that runs the tests.
        env={name: value for name, value in os.environ.items() if "MAKE" not in name},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert made.returncode == 2
    assert "make up does not know MODELS: it takes MODEL SLOTS CTX" in made.stderr
