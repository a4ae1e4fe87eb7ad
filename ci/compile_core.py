"""Compiles the core and the path of tokens with mypyc: the same for half the processor time.

`make compile` writes a copy of `orchestrator_core` with these compiled to `.build/compiled`;
`make install` lays the same modules beside the sources that it installed. Sources in the working
tree are never shadowed: there everything is interpreted.

A compiled class keeps of an annotation only its outermost type, `dict` of `dict[str, Job]`, while
checkpoints and recordings follow annotations when they run (`orchestrator_core.core.freezing`,
msgspec). So the copy that is compiled restores them at the end of each module.
"""

import argparse
import ast
import contextlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from setuptools import Extension

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "orchestrator_core"
CORE = Path(PACKAGE) / "core"

INTERPRETED = frozenset(
    {"__init__", "checkpoint", "machine", "freezing", "plain_init"}
    | {
        "catalog_model",
        "config",
        "decision",
        "effects",
        "events",
        "outcome",
        "outlook",
        "records",
        "session",
        "snapshot",
        "spec",
    }
)
"""Modules that are left as they are.

The first look at classes from outside, or have one that others inherit from. The others define
values which msgspec decodes: it fills an object that no constructor has seen, and on that compiled
classes break.
"""

SHELL = (
    "hosts/bindings.py",
    "relay/announced.py",
    "relay/chunks.py",
    "relay/digests.py",
    "relay/items.py",
    "relay/log.py",
    "relay/marks.py",
    "relay/pace.py",
    "relay/reader.py",
    "relay/relay.py",
    "relay/retelling.py",
    "servicers/exchange_session.py",
    "servicers/frames.py",
    "servicers/subscription.py",
    "telemetry/span_encoding.py",
    "wire/exchange.py",
    "wire/frames.py",
    "wire/output_frames.py",
    "wire/varint.py",
)
"""Modules of the shell that are compiled too: what happens to each token between two messages.

Nothing in them waits, so nothing in them is a coroutine.
"""

HARMLESS = "warning: Treating generator comprehension as list"
"""Said of generators that are passed to `all`, `sum` and the like: short ones, here."""

# On some processors compilers fuse a multiplication and an addition, which rounds once, not twice.
SAME_FLOATS = "-ffp-contract=off"
# `make types` has checked everything; here only what is compiled must be understood.
MYPY_OPTIONS = ("--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent")


def main(argv: list[str] | None = None) -> int:
    """Compiles; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compile the hot parts of orchestratord.")
    parser.add_argument(
        "into", type=Path, help="folder that gets orchestrator_core/**/*.so, e.g. site-packages"
    )
    parser.add_argument("--copy", action="store_true", help="copy orchestrator_core there first")
    parser.add_argument(
        "--remove", action="store_true", help="only remove what was compiled there before"
    )
    parser.add_argument("--optimize", default="3", choices="0123", help="level of the C compiler")
    args = parser.parse_args(argv)
    into: Path = args.into.resolve()
    package = into / PACKAGE
    if args.copy:
        shutil.rmtree(package, ignore_errors=True)
        _copy_to(package)
    if not package.is_dir():
        parser.error(f"{package}: not there; name a folder with orchestrator_core, or --copy")
    remove_compiled(into)
    if args.remove:
        return 0
    with tempfile.TemporaryDirectory() as work:
        compile_core(Path(work), into, args.optimize)
    print(f"compiled core in {package}")
    return 0


def _copy_to(package: Path) -> None:
    left_out = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / PACKAGE, package, ignore=left_out)


def remove_compiled(into: Path) -> None:
    """Removes what another version compiled there: Python would take it before the sources."""
    for module in (into / PACKAGE).rglob("*.so"):
        module.unlink()
    for shared in into.glob(f"{PACKAGE}__mypyc.*.so"):
        shared.unlink()


def compile_core(work: Path, into: Path, optimize: str) -> None:
    """Compiles the hot parts of this tree; modules go under `into`. `work` is an empty folder.

    Raises:
        SystemExit: when mypyc refuses a module or the C compiler fails; either says why.
    """
    # Only here: what removes needs neither of them.
    from setuptools import setup  # noqa: PLC0415

    # All of it: what is compiled calls what is not, and its types are looked up there.
    _copy_to(work / PACKAGE)
    chosen = []
    for source in sorted((work / CORE).glob("*.py")):
        if source.stem not in INTERPRETED:
            source.write_text(prepared(source.read_text(encoding="utf-8")), encoding="utf-8")
            chosen.append(str(CORE / source.name))
    chosen += [f"{PACKAGE}/{name}" for name in SHELL]
    os.environ["MYPYPATH"] = str(ROOT / "proto")
    os.chdir(work)
    extensions = _mypycified(chosen, optimize)
    for extension in extensions:
        extension.extra_compile_args.append(SAME_FLOATS)
    built = ["--quiet", "build_ext", "--build-lib", str(into), "--build-temp", str(work / "build")]
    setup(name="orchestrator-core", packages=[], ext_modules=extensions, script_args=built)


def _mypycified(chosen: list[str], optimize: str) -> "list[Extension]":
    """What is to be compiled; mypyc's words are passed on, as far as they are worth reading."""
    from mypyc.build import mypycify  # noqa: PLC0415

    words = io.StringIO()
    try:
        with contextlib.redirect_stdout(words):
            # The code of all modules is in one file, `orchestrator_core__mypyc.*.so` beside the
            # package. By default its name is a hash, which nobody would know for ours.
            found: list[Extension] = mypycify(
                [*chosen, *MYPY_OPTIONS],
                opt_level=optimize,
                debug_level="0",
                group_name=PACKAGE,
            )
    finally:
        for line in worth_reading(words.getvalue()):
            print(line)
    return found


def worth_reading(words: str) -> list[str]:
    """The lines of mypyc that somebody should act on."""
    return [line for line in words.splitlines() if not line.endswith(HARMLESS)]


def prepared(source: str) -> str:
    """The module as it is compiled: dataclasses can be made blank, and keep their annotations.

    Compiled, frozen dataclasses are cheap to make without `plain_init`.
    """
    rows = ["\n" if row == "@plain_init\n" else row for row in source.splitlines(keepends=True)]
    restored = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and "dataclass" in map(_name, node.decorator_list):
            # A thaw makes them blank and fills them later.
            rows[node.lineno - 1] = f"@mypyc_attr(serializable=True)\n{rows[node.lineno - 1]}"
            told = {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            # `vars`, as mypy takes the name for an attribute of instances.
            restored.append(f"vars({node.name})['__annotations__'].update({told})\n")
    if restored:
        first = next(index for index, row in enumerate(rows) if row.startswith(("import", "from")))
        rows[first] = f"{_IMPORT}{rows[first]}"
    return "".join(rows + restored)


# mypyc reads the decorator and leaves it out: the compiled core does not need the package.
_IMPORT = """\
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
"""


def _name(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return called.id if isinstance(called, ast.Name) else ""


if __name__ == "__main__":
    sys.exit(main())
