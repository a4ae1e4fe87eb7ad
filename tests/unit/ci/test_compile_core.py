"""What the compiled modules need of their sources."""

import ast
import dataclasses
import importlib
import pkgutil
import shutil
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest

from ci.compile_core import CORE, INTERPRETED, ROOT, SHELL, main, prepared, worth_reading
from orchestrator_core import core
from orchestrator_core.core import config, effects, events
from orchestrator_core.core.checkpoint import LEFT_OUT
from orchestrator_core.core.state import State


def reached(hint: object, seen: set[type]) -> None:
    """Collects the dataclasses that a type hint leads to."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if hint in seen:
            return
        seen.add(hint)
        left_out = LEFT_OUT.get(hint, {})
        for name, inner in typing.get_type_hints(hint).items():
            if name not in left_out:
                reached(inner, seen)
    for inner in typing.get_args(hint):
        reached(inner, seen)


def test_every_value_that_a_codec_decodes_stays_interpreted() -> None:
    """Events, effects, configuration and what a checkpoint stores, by their annotations."""
    seen: set[type] = set()
    for module in (events, effects, config):
        for member in vars(module).values():
            if isinstance(member, type):
                reached(member, seen)
    reached(State, seen)

    values = {cls for cls in seen if cls.__dataclass_params__.frozen}  # type: ignore[attr-defined]
    assert len(values) > 50
    assert {cls.__module__.rpartition(".")[2] for cls in values} <= INTERPRETED


def test_every_name_of_an_interpreted_module_exists() -> None:
    """A module that was renamed is not forgotten."""
    names = {path.stem for path in (ROOT / CORE).glob("*.py")}
    assert names >= INTERPRETED


def test_compiled_modules_of_the_shell_exist_and_do_not_wait() -> None:
    """A coroutine is no faster when it is compiled."""
    for name in SHELL:
        tree = ast.parse((ROOT / CORE.parent / name).read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)], name


def test_a_prepared_module_says_what_it_said(tmp_path: Path) -> None:
    """Equal but for a mark of mypyc; annotations are restored to what they are."""
    for info in pkgutil.iter_modules(core.__path__):
        if info.name in INTERPRETED:
            continue
        original = importlib.import_module(f"orchestrator_core.core.{info.name}")
        assert original.__file__ is not None
        text = Path(original.__file__).read_text(encoding="utf-8")
        again = types.ModuleType(original.__name__)
        marked = prepared(text).replace("@mypyc_attr(serializable=True)\n", "")
        exec(compile(marked, info.name, "exec", dont_inherit=True), vars(again))  # noqa: S102

        for name, member in vars(original).items():
            if isinstance(member, type) and member.__module__ == original.__name__:
                told = typing.get_type_hints(member)
                assert str(typing.get_type_hints(getattr(again, name))) == str(told)


def test_an_operator_who_installs_reads_what_matters() -> None:
    """Mypyc's remarks on generators need no action; everything else is passed on."""
    words = "a.py:1: warning: Treating generator comprehension as list\na.py:2: error: no\n"

    assert worth_reading(words) == ["a.py:2: error: no"]


def test_what_another_version_compiled_is_removed(tmp_path: Path) -> None:
    """An upgrade leaves it there, and Python would run it in place of the new sources."""
    folder = tmp_path / "orchestrator_core" / "core"
    folder.mkdir(parents=True)
    for name in ("queue.py", "queue.cpython-311-x86_64-linux-gnu.so", "gone.abi3.so"):
        (folder / name).touch()
    for name in ("orchestrator_core__mypyc.cpython-311-x86_64-linux-gnu.so", "others__mypyc.so"):
        (tmp_path / name).touch()

    assert main([str(tmp_path), "--remove"]) == 0

    assert [file.name for file in folder.iterdir()] == ["queue.py"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "orchestrator_core",
        "others__mypyc.so",
    ]


def test_an_installation_without_a_compiler_removes_it_too() -> None:
    """`make install COMPILE=no` over one that was compiled."""
    make = shutil.which("make")
    assert make is not None
    command = (make, "--dry-run", "install", "COMPILE=no", "PREFIX=/nowhere")
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert "/nowhere/bin/python ci/compile_core.py --remove" in told.stdout
    # Nor does it need what compiles, or what develops.
    assert "pip install" in told.stdout
    assert "-e '." not in told.stdout


def test_what_only_removes_needs_no_compiler(tmp_path: Path) -> None:
    """The Python of an installation has neither mypyc nor setuptools."""
    (tmp_path / "orchestrator_core").mkdir()
    (tmp_path / "orchestrator_core" / "a.so").touch()
    bare = (sys.executable, "-I", "-S", ROOT / "ci" / "compile_core.py", "--remove", tmp_path)
    subprocess.run(bare, check=True)

    assert list((tmp_path / "orchestrator_core").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("PREFIX=/proc/nowhere", "COMPILE=no"), "PREFIX=/proc/nowhere cannot be written"),
        (("PREFIX=/tmp", "PYTHON=false"), ""),
    ],
)
def test_what_cannot_be_installed_is_told_at_once(words: tuple[str, ...], told: str) -> None:
    """Before anything is fetched."""
    make = shutil.which("make")
    assert make is not None
    ended = subprocess.run(
        (make, "install", *words), cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.returncode != 0
    assert told in ended.stdout
    assert "pip install" not in ended.stdout
