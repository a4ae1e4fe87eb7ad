"""What is there of a file that is being fetched. ORCH-3090."""

import contextlib
import io
import json
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Partial:
    """What is there of a file, and what the server said of it. Its methods block.

    Raises:
        OSError: from each of them, when it cannot be done.
    """

    file: Path
    note: Path
    etag: str = ""
    digest: str = ""
    total: int | None = None
    size: int = 0

    def measure(self) -> None:
        """Notes how much is there."""
        self.size = self.file.stat().st_size if self.file.exists() else 0

    def load(self, url: str) -> None:
        """Takes up what an earlier try left of this address; what is left of another is removed."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(self.note.read_text())
            if noted["url"] == url:
                self.etag, self.digest, self.total = (
                    str(noted["etag"]), str(noted["digest"]), noted["total"],
                )  # fmt: skip
                self.measure()
                return
        self.discard()

    def save(self, url: str) -> None:
        """Notes what the server said, for a later try."""
        noted = {"url": url, "etag": self.etag, "digest": self.digest, "total": self.total}
        # The query of an address may hold a signature.
        self.note.touch(0o600)
        self.note.write_text(json.dumps(noted))

    def begin_anew(self) -> None:
        """Removes what was read."""
        self.file.unlink(missing_ok=True)
        self.size = 0

    def discard(self) -> None:
        """Removes what was read, and what is noted of it."""
        self.etag, self.digest, self.total = "", "", None
        self.begin_anew()
        self.note.unlink(missing_ok=True)

    def rename(self, target: Path) -> None:
        """Gives the file its name."""
        self.file.replace(target)
        self.note.unlink(missing_ok=True)


class Appender:
    """Appends to a file, in the order of `add`, whichever thread comes first. The others block."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._turn = threading.Lock()
        self._waiting: deque[bytearray] = deque()
        self._file: io.RawIOBase | None = None

    def add(self, data: bytearray) -> None:
        """Puts data in its place in the order. Does not block."""
        self._waiting.append(data)

    def write(self) -> None:
        """Writes all that was added so far."""
        with self._turn:
            if self._file is None:
                self._file = io.FileIO(self._partial.file, "ab")
            while self._waiting:
                view = memoryview(self._waiting.popleft())
                while view:
                    view = view[self._file.write(view) or 0 :]

    def close(self) -> None:
        """Writes all that was added, and notes how much is there."""
        try:
            self.write()
        finally:
            with self._turn:
                if self._file is not None:
                    self._file.close()
            self._partial.measure()
