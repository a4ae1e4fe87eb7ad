"""A file system of a chosen size, for tests of full and read-only disks."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def tmpfs(at: Path, options: str) -> Iterator[None]:
    """A small file system of its own, or a skip where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("no mount command")
    at.mkdir()
    if subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", at], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield
    finally:
        subprocess.run([umount, at], check=True)


def remount(at: Path, options: str) -> None:
    """Changes the options of a mounted tmpfs."""
    command = shutil.which("mount")
    assert command is not None
    subprocess.run([command, "-o", f"remount,{options}", at], check=True)
