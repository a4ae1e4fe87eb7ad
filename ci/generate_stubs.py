"""Generates the Python stubs beside the protos; with --check, fails when the committed ones differ.

The proto path equals the Python package (`llamaorch.orchestrator.v1`), so the generated imports
work as they are once `proto/` is on the path.
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
THIRD_PARTY = ROOT / ".build" / "third_party"
# Only files that define a service get a gRPC stub; the generator would write empty ones for the
# rest.
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_service_pb2_grpc.py", "_service_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Writes all stubs below `target`. Raises SystemExit when protoc fails."""
    sources = sorted(str(path) for path in PROTO.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO}",
            f"--proto_path={THIRD_PARTY}",
            f"--proto_path={well_known}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out={target}",
            f"--mypy_grpc_out={target}",
            *sources,
        ]
    )
    if status != 0:
        sys.exit(f"protoc failed with status {status}")


def stubs(root: Path) -> dict[str, bytes]:
    """Returns the content of every stub below `root` by relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.name.endswith(STUB_SUFFIXES)
    }


def main() -> None:
    """Generates, or checks with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = stubs(Path(scratch))
    committed = stubs(PROTO)
    if arguments.check:
        stale = sorted(
            name
            for name in fresh.keys() | committed.keys()
            if fresh.get(name) != committed.get(name)
        )
        if stale:
            sys.exit("stubs differ from the protos, run `make generate`: " + ", ".join(stale))
        return
    for name in committed.keys() - fresh.keys():
        (PROTO / name).unlink()
    for name, content in fresh.items():
        (PROTO / name).write_bytes(content)


if __name__ == "__main__":
    if shutil.which("protoc-gen-mypy") is None:
        sys.exit("protoc-gen-mypy is not on PATH: run through `make generate`")
    main()
