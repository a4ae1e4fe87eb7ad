"""Named points at which this process can be made to die or to stop, for tests of what survives.

Armed by the environment variable `LLAMAORCH_FAILPOINT` alone, as `NAME[:PASS[:ACTION]]`: at the
PASS-th pass (from 1) through the point the process sends itself SIGKILL, or SIGSTOP with the action
`stop`. Unarmed, a point costs one look at a variable. Reliability faults F1 and F2.
"""

import difflib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

VARIABLE = "LLAMAORCH_FAILPOINT"

POINTS: Mapping[str, str] = {
    "journal.opened": "The journal is open and the epoch raised; nothing is recovered yet.",
    "listening": "The jobs are recovered and the server listens.",
    "commit.before": "A batch is about to be written.",
    "commit.after": "A batch is durable; nothing that rests on it has left.",
    "effects.released": "Replies, commands and outcomes of a batch have left the commit gate.",
    "reply.before": "A job is durable; its client has not been answered.",
    "reply.after": "A client was told that its job is accepted.",
    "cancel.before": "A cancel was read; nothing is decided.",
    "cancel.after": "A cancel is durable; its client has not been answered.",
    "send.start.before": "A StartAttempt is about to be written to a host's stream.",
    "send.start.after": "A StartAttempt was handed to a host's stream.",
    "send.cancel.before": "A CancelAttempt is about to be written.",
    "send.cancel.after": "A CancelAttempt was handed to a host's stream.",
    "send.release.before": "A ReleaseAttempts is about to be written.",
    "send.release.after": "A ReleaseAttempts was handed to a host's stream.",
    "register.read": "A host's registration was read; no verdict is decided.",
    "send.verdicts.before": "The verdicts about a host's attempts are about to be written.",
    "send.verdicts.after": "The verdicts about a host's attempts were handed to its stream.",
    "output.first.before": "The first output of an attempt was read; nobody has it.",
    "output.first.after": "The first output of an attempt is with the job's readers.",
    "end.read": "The end of an attempt was read; the core does not know of it.",
    "end.before": "An outcome is durable; no reader has it.",
    "end.after": "An outcome is with the job's readers.",
    "artifact.received": "All content of an artifact was read; it is not synced.",
    "artifact.published": "Content is durable under its digest; no index names it.",
    "artifact.indexed": "An artifact is in the journal; its client has not been answered.",
    "artifact.forgotten": "An artifact is out of the journal; its content is on the disk.",
    "prune.before": "Ended jobs are about to be deleted from the journal.",
    "prune.after": "Ended jobs were deleted from the journal.",
}

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(slots=True)
class _State:
    """What is called at each point; nothing while unarmed."""

    hook: Callable[[str], None] | None = None


_state = _State()


def armed() -> bool:
    """True when points matter: guards what would only be prepared for one."""
    return _state.hook is not None


def reach(name: str) -> None:
    """Passes the point `name`."""
    if _state.hook is not None:
        assert name in POINTS, name
        _state.hook(name)


def watch(hook: Callable[[str], None] | None) -> None:
    """Calls `hook` at every point from now on; None: nothing any more."""
    _state.hook = hook


def arm(text: str) -> None:
    """Arms what the environment variable says; an empty text arms nothing.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if not text:
        return
    name, _, rest = text.partition(":")
    count, _, action = rest.partition(":")
    if name not in POINTS:
        (near,) = difflib.get_close_matches(name, POINTS, n=1, cutoff=0.0)
        raise ValueError(f"{VARIABLE}: no point {name!r} here; did you mean {near}?")
    if action not in ("", *_ACTIONS):
        raise ValueError(f"{VARIABLE}: the action is {' or '.join(_ACTIONS)}, not {action!r}")
    if rest and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f"{VARIABLE}: the pass is a whole number from 1, not {count!r}")
    watch(_Countdown(name, int(count or "1"), _ACTIONS[action or "kill"]))


@dataclass(slots=True)
class _Countdown:
    """Sends a signal to this process at one pass through one point."""

    name: str
    left: int
    number: signal.Signals

    def __call__(self, name: str) -> None:
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
