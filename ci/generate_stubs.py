"""Generates the Python stubs beside the protos; with --check, fails when the committed ones differ.

The proto path equals the Python package (`llamaorch.orchestrator.v1`), so the generated imports
work as they are once `proto/` is on the path. Protocols of engines, which are not ours, lie beside
their adapters and are imported from there.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
ENGINES = ROOT / "pool_managerd" / "engines"
THIRD_PARTY = ROOT / ".build" / "third_party"
# Only files that define a service get a gRPC stub; the generator would write empty ones for the
# rest.
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_service_pb2_grpc.py", "_service_pb2_grpc.pyi")


def generate(tree: Path, target: Path) -> None:
    """Writes all stubs of the protos below `tree` to `target`.

    Raises:
        SystemExit: when protoc fails.
    """
    sources = sorted(str(path) for path in tree.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={import_root(tree)}",
            f"--proto_path={THIRD_PARTY}",
            f"--proto_path={well_known}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *sources,
        ]
    )
    if status != 0:
        sys.exit(f"protoc failed with status {status}")


def import_root(tree: Path) -> Path:
    """Returns the folder from which the stubs of a tree are imported."""
    return PROTO if tree == PROTO else ROOT


def stubs(tree: Path, root: Path) -> dict[str, bytes]:
    """Returns the content of every stub below `tree` by its path relative to `root`."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(tree.rglob("*"))
        if path.name.endswith(STUB_SUFFIXES)
    }


def main() -> None:
    """Generates, or checks with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    arguments = parser.parse_args()
    for tree in (PROTO, ENGINES):
        with tempfile.TemporaryDirectory() as scratch:
            generate(tree, Path(scratch))
            fresh = stubs(Path(scratch), Path(scratch))
        committed = stubs(tree, import_root(tree))
        if arguments.check:
            refuse_differences(fresh, committed)
        else:
            replace(import_root(tree), fresh, committed)


def refuse_differences(fresh: dict[str, bytes], committed: dict[str, bytes]) -> None:
    """Raises SystemExit when a stub differs, is missing or has no proto any more."""
    stale = sorted(
        name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name)
    )
    if stale:
        sys.exit("stubs differ from the protos, run `make generate`: " + ", ".join(stale))


def replace(root: Path, fresh: dict[str, bytes], committed: dict[str, bytes]) -> None:
    """Writes the fresh stubs and removes those without a proto."""
    for name in committed.keys() - fresh.keys():
        (root / name).unlink()
    for name, content in fresh.items():
        (root / name).write_bytes(content)


if __name__ == "__main__":
    if shutil.which("protoc-gen-mypy") is None:
        sys.exit("protoc-gen-mypy is not on PATH: run through `make generate`")
    main()
