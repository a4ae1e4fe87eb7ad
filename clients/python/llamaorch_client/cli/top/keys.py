# SPDX-License-Identifier: Apache-2.0
"""Keys from a terminal: bytes in, names of keys out.

Source: ECMA-48, 8.3.16 (CSI); xterm's ctlseqs, "PC-Style Function Keys".
"""

_NAMES = {
    "\r": "enter",
    "\n": "enter",
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1b[5~": "page-up",
    "\x1b[6~": "page-down",
    "\x1b[H": "home",
    "\x1b[F": "end",
}
_ESCAPE = "\x1b"
# Longer than any sequence that a key sends; more is garbage.
SEQUENCE_CHARS_MAX = 16


class KeyReader:
    """Cuts what a terminal sends into keys; a sequence may come in parts."""

    def __init__(self) -> None:
        self._rest = ""

    @property
    def waiting(self) -> bool:
        """True while a sequence may go on: it is either not complete, or the key Escape."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """Returns the keys that are complete: a name, or the character itself."""
        text, found = self._rest + data.decode("utf-8", "replace"), []
        while text:
            key, text = _first(text)
            if key is None:
                break
            if key:
                found.append(key)
        self._rest = text
        return found

    def flush(self) -> list[str]:
        """Nothing more comes: what was begun was the key Escape, or nothing."""
        rest, self._rest = self._rest, ""
        return ["escape"] if rest == _ESCAPE else []


def _first(text: str) -> tuple[str | None, str]:
    """The first key and the rest; "" for a sequence without meaning, None for one not complete."""
    if not text.startswith(_ESCAPE):
        return _NAMES.get(text[0], text[0]), text[1:]
    if len(text) == 1:
        return None, text
    if text[1] not in "[O":
        # Escape, and then another key; or that key with Alt, which means the same here.
        return "escape", text[1:]
    for end in range(2, min(len(text), SEQUENCE_CHARS_MAX)):
        if "@" <= text[end] <= "~":
            # In application mode the arrows come as SS3 instead of CSI.
            sequence = f"{_ESCAPE}[{text[2 : end + 1]}"
            return _NAMES.get(sequence, ""), text[end + 1 :]
    return (None, text) if len(text) < SEQUENCE_CHARS_MAX else ("", text[SEQUENCE_CHARS_MAX:])
