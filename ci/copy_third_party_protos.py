"""Copies the google.rpc protos of googleapis-common-protos into .build/third_party."""

import shutil
from pathlib import Path

from google.rpc import status_pb2

TARGET = Path(__file__).resolve().parent.parent / ".build" / "third_party" / "google" / "rpc"
NAMES = ("status.proto", "error_details.proto")


def main() -> None:
    """Copies the files that the project's protos and its non-Python clients need."""
    source = Path(status_pb2.__file__).parent
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        shutil.copyfile(source / name, TARGET / name)


if __name__ == "__main__":
    main()
