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
    "engine.ready": "An engine has loaded its model; its pool is not READY yet.",
    "register.before": "The registration is about to be written.",
    "register.after": "The orchestrator's verdicts were read; none is obeyed.",
    "verdicts.obeyed": "What is held was adopted, stopped or forgotten as the verdicts say.",
    "start.before": "A StartAttempt was read; nothing runs.",
    "start.after": "The attempt of a StartAttempt runs, or was refused.",
    "output.first.before": "The engine gave an attempt's first output; it is not kept yet.",
    "output.first.after": "An attempt's first output is kept and may be sent.",
    "frame.before": "A frame with output is about to be written.",
    "frame.after": "A frame with output was handed to the stream.",
    "end.before": "An attempt is over; its end is not kept yet.",
    "end.after": "An attempt's end is kept and may be sent.",
    "frame.end.before": "A frame with an attempt's end is about to be written.",
    "frame.end.after": "A frame with an attempt's end was handed to the stream.",
    "cancel.before": "A CancelAttempt was read; the attempt still runs.",
    "cancel.after": "The attempt of a CancelAttempt was asked to stop.",
    "idle.confirmed": "The engine no longer works on a stopped attempt; its slot is still held.",
    "release.before": "A ReleaseAttempts was read; its output is still held.",
    "release.after": "The output of a ReleaseAttempts is forgotten.",
}

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(slots=True)
class _State:
    """What is called at each point; nothing while unarmed."""

    hook: Callable[[str], None] | None = None


_state = _State()


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
