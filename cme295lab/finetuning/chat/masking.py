"""A conversation as tokens, and which of them carry loss.

    text    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n  Hello<|im_end|>  \\n
    loss    no                                                       yes             no

Loss is on what the assistant has to say: every answer of the conversation, and the end of turn after each. Loss on the
questions would teach the model to ask; without loss on the end of turn it would never stop.

**Same tokens as in use.** When the model answers, it is given the prompt's tokens, and continues. So the tokens up to
an answer must be those that the prompt alone has, and the tokens up to the end of turn those of the text up to there.
A vocabulary may not do so: where an answer begins with a line break, "\\n\\n" can be one token that is half header and
half answer. Such an example is refused, with the advice to take the white space off.

**Control tokens.** A marker such as "<|im_end|>" has to be one token. In a vocabulary that does not know it, it is six
or so, which a model can learn, but which nothing stops at: refused; `add_chat_tokens` makes a vocabulary that has them
(`growing` gives the model rows for them). And a message that contains a special token of the vocabulary is refused,
because it would be read as one: "<|im_end|>" in a question could end the question and begin an answer.

**Too long.** No answer is ever cut: a model would learn to stop in the middle. A conversation that is longer than the
context is refused, or begins later: first turns are left out, from a question up to the next, and the scene stays.

The text begins as the template writes it. The vocabulary adds nothing, so there are no two begin tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tokenizers import AddedToken, Tokenizer

from cme295lab.finetuning.chat.messages import AnyMessage, Message, as_messages
from cme295lab.finetuning.chat.templates import ChatTemplate, Segment
from cme295lab.transformer.text import TextTokenizer

OnTooLong = Literal["refuse", "drop-first-turns"]


@dataclass(frozen=True)
class ChatExample:
    """A conversation as tokens.

    Attributes:
        tokens: of the whole conversation.
        loss_mask: for each token, whether the assistant says it; never the first, which nothing comes before.
        num_dropped_messages: left out at the beginning, because all were too long.

    Raises:
        ValueError: if the two differ in length, or no token carries loss.
    """

    tokens: list[int]
    loss_mask: list[bool]
    num_dropped_messages: int = 0

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.loss_mask):
            raise ValueError(f"{len(self.tokens)} tokens need as many mask values, got {len(self.loss_mask)}")
        if not any(self.loss_mask):
            raise ValueError("no token carries loss: there is nothing to learn from this example")
        if self.loss_mask[0]:
            raise ValueError("the first token cannot carry loss: there is nothing to predict it from")

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return sum(self.loss_mask)


def encode_chat(
    messages: Iterable[AnyMessage],
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    *,
    max_length: int | None = None,
    on_too_long: OnTooLong = "refuse",
) -> ChatExample:
    """Turn a conversation into tokens with a loss mask.

    Args:
        messages: `Message`s or dicts; at least one of the assistant.
        tokenizer: knows the template's control tokens.
        template: writes the conversation.
        max_length: the most tokens that are allowed; None for no limit.
        on_too_long: what is done with a longer conversation: "refuse" it, or "drop-first-turns" until it fits.

    Returns:
        Tokens equal to those of the rendered text, and the mask.

    Raises:
        TypeError: if an argument has another type.
        ValueError: if there is no answer, the conversation is too long (and, with "drop-first-turns", its last
            question and answer alone are), a message contains a special token, the vocabulary lacks a control token, a
            token is half answer, or the template cannot write the conversation.
    """
    _check_options(tokenizer, template, max_length, on_too_long)
    checked = as_messages(messages)
    _require_answer(checked)
    _refuse_special_tokens(checked, tokenizer)
    tokens, mask = _tokens_and_mask(template.segments(checked), tokenizer)
    if max_length is None or len(tokens) <= max_length:
        return ChatExample(tokens, mask)
    if on_too_long == "refuse":
        raise ValueError(
            f"the conversation has {len(tokens)} tokens, max_length is {max_length}: leave it out, raise the limit, or "
            f"give on_too_long='drop-first-turns'; an answer is never cut"
        )
    return _without_first_turns(checked, tokenizer, template, max_length)


def _without_first_turns(
    messages: list[Message], tokenizer: TextTokenizer, template: ChatTemplate, max_length: int
) -> ChatExample:
    """The longest end of a conversation that fits, with its scene; it begins with a question."""
    scene = messages[:1] if messages[0].role == "system" else []
    turns = messages[len(scene) :]
    length = 0
    for number in range(1, len(turns)):
        before, message = turns[number - 1], turns[number]
        kept = turns[number:]
        if message.role != "user" or before.role == "user" or all(other.role == "user" for other in kept):
            continue
        tokens, mask = _tokens_and_mask(template.segments([*scene, *kept]), tokenizer)
        length = len(tokens)
        if length <= max_length:
            return ChatExample(tokens, mask, num_dropped_messages=number)
    raise ValueError(
        f"the conversation does not fit max_length {max_length} even without its first turns"
        f"{f': {length} tokens are left' if length else ''}. An answer is never cut: leave the conversation out, or "
        f"raise the limit"
    )


def _tokens_and_mask(segments: Sequence[Segment], tokenizer: TextTokenizer) -> tuple[list[int], list[bool]]:
    """Tokens of the whole text; those between the tokens of the text before an answer, and with it, carry loss."""
    text = "".join(segment.text for segment in segments)
    tokens = tokenizer.encode(text, special=False)
    mask = [False] * len(tokens)
    end = 0
    for segment in segments:
        start, end = end, end + len(segment.text)
        if segment.is_assistant:
            first, last = (_tokens_before(text, place, tokens, tokenizer) for place in (start, end))
            mask[first:last] = [True] * (last - first)
    return tokens, mask


def _tokens_before(text: str, place: int, tokens: list[int], tokenizer: TextTokenizer) -> int:
    """How many tokens the text before a place has, if the whole text begins with the same."""
    before = tokenizer.encode(text[:place], special=False) if place else []
    if tokens[: len(before)] != before:
        around = f"{text[max(place - 20, 0) : place]!r} and {text[place : place + 20]!r}"
        raise ValueError(
            f"no token ends between {around}, where the assistant's text begins or ends: one token is half of it, half "
            f"not, and would never come so in use. Take white space off the ends of the answer, or take a template "
            f"whose answers stand between special tokens"
        )
    return len(before)


def _require_answer(messages: list[Message]) -> None:
    if not any(message.role == "assistant" for message in messages):
        roles = ", ".join(message.role for message in messages)
        raise ValueError(f"no message is of the assistant (roles: {roles}): there is nothing to learn from it")


def _check_options(
    tokenizer: TextTokenizer, template: ChatTemplate, max_length: int | None, on_too_long: OnTooLong
) -> None:
    if not isinstance(tokenizer, TextTokenizer):
        raise TypeError(f"tokenizer must be a TextTokenizer, got {type(tokenizer).__name__}")
    if not isinstance(template, ChatTemplate):
        raise TypeError(f"template must be what chat_template(...) gives, got {type(template).__name__}")
    if on_too_long not in get_args(OnTooLong):
        raise ValueError(f"on_too_long must be one of {', '.join(get_args(OnTooLong))}, got {on_too_long!r}")
    if max_length is not None and operator.index(max_length) < 2:
        raise ValueError(f"max_length must be at least 2, a token and an answer to it, or None; got {max_length}")
    missing = [token for token in template.control_tokens if len(tokenizer.encode(token, special=False)) != 1]
    if missing:
        raise ValueError(
            f"the template {template.name} writes {', '.join(missing)}, which the vocabulary does not know as one "
            f"token each: give it a tokenizer with them (add_chat_tokens makes one), or another template"
        )


def _refuse_special_tokens(messages: list[Message], tokenizer: TextTokenizer) -> None:
    special = [token.content for token in tokenizer.tokenizer.get_added_tokens_decoder().values() if token.special]
    for number, message in enumerate(messages):
        for token in special:
            if token in message.content:
                raise ValueError(
                    f"message {number} ({message.role}) contains {token!r}, which would be read as the special token: "
                    f"take it out, or leave the conversation out"
                )


def add_chat_tokens(tokenizer: TextTokenizer, template: ChatTemplate) -> TextTokenizer:
    """A copy of a vocabulary that knows a template's control tokens.

    Args:
        tokenizer: stays as it is.
        template: its control tokens are added behind the largest token number, those that are missing.

    Returns:
        The copy. If its `vocab_size` is larger than the model's, the model's embedding (and head) need more rows:
        `grow_vocabulary` adds them.
    """
    library = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    missing = [token for token in template.control_tokens if len(tokenizer.encode(token, special=False)) != 1]
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    return TextTokenizer(library, end_token=tokenizer.end_token)


@dataclass(frozen=True)
class EncodedChats:
    """Conversations as tokens, and those that were left out.

    Attributes:
        examples: in the order of the conversations.
        problems: number of a conversation, from 0, -> why it was left out.
    """

    examples: list[ChatExample]
    problems: dict[int, str]

    def __str__(self) -> str:
        shortened = sum(example.num_dropped_messages > 0 for example in self.examples)
        num_tokens = sum(len(example.tokens) for example in self.examples)
        num_targets = sum(example.num_targets for example in self.examples)
        line = (
            f"{len(self.examples)} conversations, {num_tokens:,} tokens, {num_targets:,} of them with loss; "
            f"{shortened} begin later, {len(self.problems)} left out"
        )
        return "\n".join([line, *(f"  conversation {number}: {why}" for number, why in self.problems.items())])


def encode_chats(
    conversations: Iterable[Iterable[AnyMessage]],
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    *,
    max_length: int | None = None,
    on_too_long: OnTooLong = "refuse",
    on_error: Literal["refuse", "skip"] = "refuse",
) -> EncodedChats:
    """Turn many conversations into tokens with loss masks.

    Args:
        conversations, tokenizer, template, max_length, on_too_long: as for `encode_chat`.
        on_error: "refuse" all if one is refused, or "skip" it and say so in `problems`. What is wrong with the
            vocabulary or an option is wrong with every conversation, and is refused in any case.

    Raises:
        ValueError: if a conversation is refused (it says which), or all of them are.
    """
    if on_error not in ("refuse", "skip"):
        raise ValueError(f"on_error must be 'refuse' or 'skip', got {on_error!r}")
    _check_options(tokenizer, template, max_length, on_too_long)
    examples, problems = [], {}
    for number, messages in enumerate(conversations):
        try:
            example = encode_chat(messages, tokenizer, template, max_length=max_length, on_too_long=on_too_long)
        except (TypeError, ValueError) as error:
            if on_error == "refuse":
                raise ValueError(f"conversation {number}: {error}") from error
            problems[number] = str(error)
        else:
            examples.append(example)
    if not examples:
        first = f"; the first: {problems[0]}" if problems else ""
        raise ValueError(f"no conversation is left of {len(problems)}: there is nothing to train on{first}")
    return EncodedChats(examples, problems)
