"""What may be an input of jobs, and what is said of the rest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.artifacts.prompts import (
    CHAT,
    MESSAGES_MAX,
    TEXT,
    Conversation,
    Unfit,
    prompt_bytes,
    read_prompt,
)


def talk(*messages: object) -> bytes:
    """A conversation as it is stored."""
    return json.dumps({"messages": messages}).encode()


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_text_and_talk_come_back_and_are_counted_in_bytes(text: str) -> None:
    """Whatever they say."""
    plain = read_prompt(TEXT, text.encode())
    conversation = read_prompt(CHAT, talk({"role": "user", "content": text}))

    assert plain == text
    assert isinstance(conversation, Conversation)
    assert [(m.role, m.content) for m in conversation.messages] == [("user", text)]
    assert prompt_bytes(plain) == prompt_bytes(conversation) == len(text.encode())


@pytest.mark.parametrize(
    ("media_type", "content", "must"),
    [
        (TEXT, b"", "not be empty"),
        (TEXT, b"ab\xff", "must be UTF-8; byte 2 is not"),
        (CHAT, b"", "the content must be"),
        (CHAT, b"[]", "the content must be"),
        (CHAT, b'{"messages": []}', "1 to 4096 messages"),
        (CHAT, talk({"role": "user"}), "missing required field"),
        (CHAT, talk({"role": "user", "content": "x", "name": "n"}), "unknown field"),
        (CHAT, talk({"role": "", "content": "x"}), "messages[0].role must have 1 to 64"),
        (CHAT, talk({"role": "r" * 65, "content": "x"}), "messages[0].role must have 1 to 64"),
        (CHAT, talk({"role": "user", "content": ["x"]}), "the content must be"),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "the content must be"),
        (CHAT, talk(*[{"role": "u", "content": ""}] * (MESSAGES_MAX + 1)), "1 to 4096 messages"),
        (CHAT, b"[" * 100_000, "the content must be"),
        ("image/png", b"x", "an input is text/plain or application/json"),
    ],
)
def test_what_is_no_input_is_told_so(media_type: str, content: bytes, must: str) -> None:
    """ORCH-3016: in words that say what to change."""
    found = read_prompt(media_type, content)

    assert isinstance(found, Unfit)
    assert must in found.must
