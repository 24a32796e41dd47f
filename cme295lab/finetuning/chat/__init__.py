"""Conversations as training data: text by a template, tokens with a loss mask, packed rows, files.

Read in this order: ``messages`` (a conversation), ``templates`` (how it is written as one text), ``jinja_template`` (a
template that somebody else wrote), ``masking`` (tokens, and which of them carry loss), ``growing`` (a model gets rows
for new control tokens), ``packing`` (several conversations in a row), ``readers`` (conversations from files).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.finetuning.chat.growing import grow_vocabulary
    from cme295lab.finetuning.chat.masking import ChatExample, EncodedChats, add_chat_tokens, encode_chat, encode_chats
    from cme295lab.finetuning.chat.messages import Message, as_messages
    from cme295lab.finetuning.chat.packing import PackedChats, pack_chats
    from cme295lab.finetuning.chat.readers import ConversationFile, Problem, read_conversations
    from cme295lab.finetuning.chat.templates import TEMPLATE_NAMES, ChatTemplate, Segment, chat_template

_HOME: dict[str, str] = {
    "ChatExample": "masking",
    "ChatTemplate": "templates",
    "ConversationFile": "readers",
    "EncodedChats": "masking",
    "Message": "messages",
    "PackedChats": "packing",
    "Problem": "readers",
    "Segment": "templates",
    "TEMPLATE_NAMES": "templates",
    "add_chat_tokens": "masking",
    "as_messages": "messages",
    "chat_template": "templates",
    "encode_chat": "masking",
    "encode_chats": "masking",
    "grow_vocabulary": "growing",
    "pack_chats": "packing",
    "read_conversations": "readers",
}
_MODULES = ("growing", "jinja_template", "masking", "messages", "packing", "readers", "templates")

__all__: list[str] = [
    "Message",
    "as_messages",
    "chat_template",
    "ChatTemplate",
    "Segment",
    "TEMPLATE_NAMES",
    "encode_chat",
    "encode_chats",
    "ChatExample",
    "EncodedChats",
    "add_chat_tokens",
    "grow_vocabulary",
    "pack_chats",
    "PackedChats",
    "read_conversations",
    "ConversationFile",
    "Problem",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
