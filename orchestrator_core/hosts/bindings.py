"""Which attempt each handle of a Dispatch stream stands for, and how far its output was read."""

from dataclasses import dataclass

from orchestrator_core.relay.log import OutputLog

AttemptKey = tuple[str, int]


@dataclass(slots=True)
class Binding:
    """A handle's attempt, and how far its output was read and acknowledged.

    The host was last told to send from `asked_offset` on, by command `asked_seq`; -1: never. When
    the core was last told of output is `told_ms`, -1: not yet. `log` is where the output goes, once
    some has come.
    """

    handle: int
    key: AttemptKey
    read_offset: int = 0
    acked_offset: int = 0
    asked_offset: int = -1
    asked_seq: int = 0
    told_ms: int = -1
    log: OutputLog | None = None

    def answers(self, text_offset: int, applied_seq: int) -> bool:
        """True for output sent after the host was told to send from a place on.

        If it lies ahead of the place, the host holds nothing before it. `applied_seq` is the last
        command that the host had obeyed: what was under way before the request says nothing.
        """
        return self.asked_offset == text_offset and self.asked_seq <= applied_seq


class Bindings:
    """The handles of one stream.

    An attempt whose output no longer counts keeps its handle until the host is told to forget it.
    `due` are handles whose output is to be acknowledged now, `unacked` those where it can wait:
    there is more than `quarter_bytes` of it, or less.
    """

    __slots__ = ("_bound", "_handles", "_next_handle", "due", "quarter_bytes", "unacked")

    def __init__(self, quarter_bytes: int) -> None:
        self._bound: dict[int, Binding] = {}
        self._handles: dict[AttemptKey, int] = {}
        self._next_handle = 1
        self.quarter_bytes = quarter_bytes
        self.due: list[int] = []
        self.unacked: set[int] = set()

    def __len__(self) -> int:
        """Handles, and attempts that have one."""
        return len(self._bound) + len(self._handles)

    def bind(self, key: AttemptKey) -> Binding:
        """Gives an attempt a new handle."""
        handle = self._next_handle
        self._next_handle += 1
        binding = self._bound[handle] = Binding(handle, key)
        self._handles[key] = handle
        return binding

    def of(self, handle: int) -> Binding | None:
        """The binding of a handle; None when its frames no longer count."""
        return self._bound.get(handle)

    def by_key(self, key: AttemptKey) -> Binding | None:
        """The binding of an attempt; None when its frames do not count here."""
        return self._bound.get(self._handles.get(key, 0))

    def handle(self, key: AttemptKey) -> int | None:
        """The handle of an attempt, whether its frames count or not."""
        return self._handles.get(key)

    def unbind(self, key: AttemptKey) -> None:
        """Drops the frames of an attempt from now on; its handle is still known."""
        self._bound.pop(self._handles.get(key, 0), None)

    def bind_again(self, key: AttemptKey) -> None:
        """Takes the frames of an attempt again that were dropped, if its handle is known."""
        handle = self._handles.get(key)
        if handle is not None and handle not in self._bound:
            self._bound[handle] = Binding(handle, key)

    def release(self, key: AttemptKey) -> int | None:
        """Forgets an attempt; returns its handle, if it had one."""
        handle = self._handles.pop(key, None)
        if handle is not None:
            self._bound.pop(handle, None)
        return handle

    def handle_gone(self, handle: int) -> None:
        """Forgets a handle whose attempt the host no longer holds."""
        binding = self._bound.pop(handle, None)
        if binding is not None:
            self._handles.pop(binding.key, None)

    def read(self, binding: Binding, offset: int) -> None:
        """Notes that the output of an attempt was read up to there."""
        binding.read_offset = offset
        unacked = offset - binding.acked_offset
        if unacked >= self.quarter_bytes:
            self.due.append(binding.handle)
        elif unacked > 0:
            self.unacked.add(binding.handle)
