"""A conversation: messages, each with a role and what was said.

Three roles, as in every published format of plain chats: "system" sets the scene and comes first if it comes at all,
"user" asks, "assistant" answers. A message is a `Message` or a dict with "role" and "content", as files and libraries
have it; everything in this room takes both.

What is refused here is what no template could make sense of: other roles (tools are not covered), text that is not
UTF-8, an answer without a word. Whether users and assistants have to take turns is for the template to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """What somebody said.

    Attributes:
        role: "system", "user" or "assistant".
        content: the text; of an assistant, more than white space.

    Raises:
        TypeError: if the content is no string.
        ValueError: if the role is unknown, the content cannot be written as UTF-8, or an answer is empty.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if not isinstance(self.content, str):
            raise TypeError(f"content of a message must be a string, got {type(self.content).__name__}")
        try:
            self.content.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"content of a message has half a character (a lone surrogate): {error}") from error
        if self.role == "assistant" and not self.content.strip():
            raise ValueError("an assistant's message is empty: there is nothing to learn from it")


AnyMessage = Message | Mapping[str, Any]


def as_messages(messages: Iterable[AnyMessage]) -> list[Message]:
    """Check a conversation, and make every message of it a `Message`.

    Args:
        messages: `Message`s, or dicts with "role" and "content"; further keys with a value are refused, since they
            would be lost (tool calls, say).

    Returns:
        At least one message; a system message stands at most at the beginning.

    Raises:
        TypeError: if a message is something else, or its content no string.
        ValueError: if there is no message, or one is refused; the error says which, counted from 0.
    """
    if isinstance(messages, str | Mapping | Message):
        raise TypeError(f"messages must be a list of messages, got one {type(messages).__name__}")
    checked = [_message(number, message) for number, message in enumerate(messages)]
    if not checked:
        raise ValueError("messages is empty: a conversation has at least one message")
    for number, message in enumerate(checked):
        if number and message.role == "system":
            raise ValueError(f"message {number} is a system message: it can only be the first")
    return checked


def _message(number: int, given: AnyMessage) -> Message:
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"message {number} must be a Message or a dict, got {type(given).__name__}")
    filled = {key for key, value in given.items() if value is not None}
    if missing := {"role", "content"} - filled:
        raise ValueError(f"message {number} has no {' and no '.join(sorted(missing))}; it has {_listed(filled)}")
    if further := filled - {"role", "content"}:
        raise ValueError(f"message {number} has {_listed(further)} besides role and content, which would be lost")
    try:
        return Message(given["role"], given["content"])
    except (TypeError, ValueError) as error:
        raise type(error)(f"message {number}: {error}") from error


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"
