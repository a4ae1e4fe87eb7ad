"""Inputs of jobs as they are stored: text, or a conversation in JSON. Checked when they are put."""

from dataclasses import dataclass

import msgspec

TEXT = "text/plain"
CHAT = "application/json"
MESSAGES_MAX = 4_096
ROLE_CHARS_MAX = 64


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: str
    content: str


class Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation: what `application/json` holds."""

    messages: tuple[ChatMessage, ...]


Prompt = str | Conversation


@dataclass(frozen=True, slots=True)
class Unfit:
    """Content that is no input; `must` says what to change."""

    must: str


def read_prompt(media_type: str, content: bytes) -> Prompt | Unfit:
    """Reads an input. O(its size); blocks for milliseconds per megabyte."""
    if media_type == TEXT:
        return _text(content)
    if media_type == CHAT:
        return _conversation(content)
    return Unfit(f"an input is {TEXT} or {CHAT}, not {media_type}")


def prompt_bytes(prompt: Prompt) -> int:
    """Bytes of text in it, UTF-8, as they are counted of a request that brings them itself."""
    if isinstance(prompt, str):
        return len(prompt.encode())
    return sum(len(message.content.encode()) for message in prompt.messages)


def _text(content: bytes) -> Prompt | Unfit:
    if not content:
        return Unfit("the content must not be empty")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        return Unfit(f"the content must be UTF-8; byte {error.start} is not")


def _conversation(content: bytes) -> Prompt | Unfit:
    form = '{"messages": [{"role": "...", "content": "..."}]}'
    try:
        found = msgspec.json.decode(content, type=Conversation)
        for message in found.messages:
            # JSON can name halves of characters, of which there is no UTF-8.
            (message.role + message.content).encode()
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        return Unfit(f"the content must be {form} ({_told(error)})")
    if not 1 <= len(found.messages) <= MESSAGES_MAX:
        return Unfit(f"there must be 1 to {MESSAGES_MAX} messages")
    for index, message in enumerate(found.messages):
        if not 1 <= len(message.role) <= ROLE_CHARS_MAX:
            return Unfit(f"messages[{index}].role must have 1 to {ROLE_CHARS_MAX} characters")
    return found


def _told(error: Exception) -> str:
    # A UnicodeEncodeError quotes the text.
    return str(error)[:160] if isinstance(error, msgspec.DecodeError) else "half a character"
