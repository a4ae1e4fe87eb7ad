"""Content on disk: one file per SHA-256. Everything here blocks and belongs into a thread.

Below the directory:

    lock          held by the orchestrator that has it
    journal       id of the journal whose index names what is here
    incoming/     uploads that have not ended
    objects/      content, each file named by the SHA-256 of what is in it

No name here comes from a client: only digests that were computed or found to be such. Directories
and files are opened relative to one another and links are not followed, so that nothing here leads
out of the directory. Content is written to `incoming`, synced, renamed, and its directory synced.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from orchestrator_core.errors import OrchestratorError

DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = ".part"
_CLAIM_BYTES_MAX = 256
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ArtifactFilesError(OrchestratorError):
    """Base of what the files of artifacts raise.

    ArtifactFilesError
    ├── FilesUnusableError   the directory cannot be used; says what to change
    ├── FilesFullError       no room on the disk, or none that may be used
    └── DamagedError         content is not what was put, or not there
    """


class FilesUnusableError(ArtifactFilesError):
    """The directory cannot be used; the message names it and says what to change."""


class FilesFullError(ArtifactFilesError):
    """No room is left on the disk, or none that artifacts may use."""


class DamagedError(ArtifactFilesError):
    """Content is not what was put, or not there; the message says which."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found: files that no index names, now removed, and content that is missing."""

    removed: int
    missing: frozenset[str]


class ArtifactFiles:
    """One directory. `open` comes first; then its methods may be called from several threads.

    Of the disk, `free_bytes_min` stay free.
    """

    def __init__(self, directory: Path, free_bytes_min: int = 0) -> None:
        self.directory = directory
        self._free_bytes_min = free_bytes_min
        self._descriptors: list[int] = []
        self._incoming = self._objects = -1

    def open(self, journal_id: str) -> None:
        """Makes or takes the directory. Raises `FilesUnusableError`."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            root = self._kept(os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._lock(root)
            self._claim(root, journal_id)
            self._incoming, self._objects = (
                self._inner(root, name) for name in ("incoming", "objects")
            )
        except OSError as error:
            self.close()
            raise FilesUnusableError(
                f"{self.directory} cannot hold artifacts ({error.strerror}): it must be a directory"
                " that this process may write, without links in it; see artifacts.path"
            ) from error
        except FilesUnusableError:
            self.close()
            raise

    def close(self) -> None:
        """Gives the directory back. Idempotent."""
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)

    def sweep(self, known: AbstractSet[str]) -> Swept:
        """Removes what a crash left behind: unfinished uploads, and content that is not `known`.

        To be called before anything is put. Looks at each file once. Files with other names than
        those given here are left alone.
        """
        removed, found = 0, set()
        for name in _names(self._incoming):
            if name.endswith(_PART):
                removed += self._unlink(name, self._incoming)
        for name in _names(self._objects):
            if DIGEST.fullmatch(name) is None:
                continue
            if name in known:
                found.add(name)
            else:
                removed += self._unlink(name, self._objects)
        return Swept(removed, frozenset(known - found))

    def receive(self) -> "Incoming":
        """Begins to take content. Raises `FilesFullError`, or OSError."""
        self._check_room(0)
        name = secrets.token_hex(16) + _PART
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with _typed():
            return Incoming(self, name, os.open(name, flags, 0o600, dir_fd=self._incoming))

    def publish(self, incoming: "Incoming") -> None:
        """Makes content that was received and synced what its digest names; durable on return.

        A file of that name is replaced: it has the same content, or is damaged.
        """
        assert DIGEST.fullmatch(incoming.sha256), "the content is complete"
        with _typed():
            os.rename(
                incoming.name,
                incoming.sha256,
                src_dir_fd=self._incoming,
                dst_dir_fd=self._objects,
            )
            os.fsync(self._objects)

    def remove(self, sha256: str) -> None:
        """Removes content, if it is there. Raises OSError."""
        assert DIGEST.fullmatch(sha256), "only digests are names here"
        self._unlink(sha256, self._objects)

    def read(self, sha256: str, size_bytes: int) -> "Reading":
        """Opens content. Raises `DamagedError` when it is not there or cannot be right, OSError."""
        assert DIGEST.fullmatch(sha256), "only digests are names here"
        # A pipe in the place of a file must not make this wait.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(sha256, flags, dir_fd=self._objects)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                raise
            what = "is missing" if error.errno == errno.ENOENT else "is no regular file"
            raise DamagedError(f"its content {what}") from error
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size != size_bytes:
            os.close(descriptor)
            what = f"has {about.st_size} bytes instead of {size_bytes}"
            raise DamagedError(
                f"its content {what if stat.S_ISREG(about.st_mode) else 'is no regular file'}"
            )
        return Reading(descriptor, sha256)

    def discard(self, name: str) -> None:
        """Removes an upload, if it is there."""
        with contextlib.suppress(OSError):
            self._unlink(name, self._incoming)

    def _check_room(self, size_bytes: int) -> None:
        about = os.fstatvfs(self._incoming)
        if about.f_bavail * about.f_frsize - size_bytes < self._free_bytes_min:
            raise FilesFullError(
                f"less than {self._free_bytes_min} bytes would be free on the disk of artifacts"
                " (artifacts.free_bytes_min)"
            )

    def write(self, descriptor: int, data: bytes) -> None:
        """Appends to an upload. Raises `FilesFullError`, or OSError."""
        self._check_room(len(data))
        view = memoryview(data)
        with _typed():
            while view:
                view = view[os.write(descriptor, view) :]

    def _lock(self, root: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        held = self._kept(os.open("lock", flags, 0o600, dir_fd=root))
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FilesUnusableError(
                f"{self.directory} is in use by another orchestrator: stop that one, or name"
                " another directory in artifacts.path"
            ) from error

    def _claim(self, root: int, journal_id: str) -> None:
        """Refuses a directory of another journal: all in it would look like garbage."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = self._kept(os.open("journal", flags, 0o600, dir_fd=root))
        told = os.read(descriptor, _CLAIM_BYTES_MAX)
        if not told:
            os.write(descriptor, journal_id.encode())
            os.fsync(descriptor)
            os.fsync(root)
        elif told != journal_id.encode():
            raise FilesUnusableError(
                f"{self.directory} holds artifacts of another journal"
                f" ({told.decode('ascii', 'replace')}): restore that one, delete the directory"
                " if nobody needs them, or name another one in artifacts.path"
            )

    def _inner(self, root: int, name: str) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=root)
            os.fsync(root)
        return self._kept(os.open(name, _DIRECTORY, dir_fd=root))

    def _kept(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def _unlink(self, name: str, directory: int) -> int:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
            return 1
        return 0


class TemporaryFiles(ArtifactFiles):
    """A directory that goes with the process, for an index in memory."""

    def __init__(self, free_bytes_min: int = 0) -> None:
        self._whole = tempfile.TemporaryDirectory(prefix="llamaorch-artifacts-")
        super().__init__(Path(self._whole.name), free_bytes_min)

    def close(self) -> None:
        """Removes the directory. Idempotent."""
        super().close()
        self._whole.cleanup()


class Incoming:
    """Content that arrives. One thread at a time. `discard` it unless it was published."""

    def __init__(self, files: ArtifactFiles, name: str, descriptor: int) -> None:
        self.name = name
        self.size_bytes = 0
        self.sha256 = ""
        self._files = files
        self._descriptor = descriptor
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Appends. Raises `FilesFullError`, or OSError."""
        self._files.write(self._descriptor, data)
        self._hash.update(data)
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Ends the content: it is durable, though not yet under its name. Raises as `write`."""
        with _typed():
            os.fsync(self._descriptor)
        self.sha256 = self._hash.hexdigest()

    def content(self) -> bytes:
        """All of it, in memory."""
        return os.pread(self._descriptor, self.size_bytes, 0)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def discard(self) -> None:
        """Closes and removes it. Idempotent; without effect on what was published."""
        self.close()
        self._files.discard(self.name)


class Reading:
    """Content that is read from its beginning to its end. One thread at a time."""

    def __init__(self, descriptor: int, sha256: str) -> None:
        self._descriptor = descriptor
        self._sha256 = sha256
        self._hash = hashlib.sha256()

    def read(self, size_bytes: int) -> bytes:
        """The next bytes, fewer than asked for only at the end. Raises OSError."""
        parts = []
        while size_bytes and (part := os.read(self._descriptor, size_bytes)):
            parts.append(part)
            size_bytes -= len(part)
        data = b"".join(parts)
        self._hash.update(data)
        return data

    def verify(self) -> None:
        """Raises `DamagedError` unless all that was read is what was put."""
        if self._hash.hexdigest() != self._sha256:
            raise DamagedError("its content was changed on the disk: its SHA-256 differs")

    def close(self) -> None:
        """Closes the file. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


@contextlib.contextmanager
def _typed() -> Iterator[None]:
    """Tells a full disk from other failures."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise FilesFullError(f"the disk of artifacts is full ({error.strerror})") from error
        raise
