"""A conversation as tokens: who says each of them, which carry loss, and how several conversations share rows.

Two pure functions, `token_mask` and `packed_rows`, and the records that they return. Templates, masks and packing are
those of `cme295lab.finetuning.chat`; here their results get texts and roles.

**Roles.** A template tells what the assistant says, which is what carries loss. To show who says the rest, the text of
each message is looked for in the rendered conversation, in order; a token belongs to the message in which its last
character stands. What no message says (headers, the end of turn) is the template's.

**One vocabulary for four templates.** Each template needs control tokens that the vocabulary must know as one token
each, so they are added, as for training. Llama-3 closes its headers with an empty line, which its own vocabulary reads
as one token whatever follows. Others read "\\n\\n" as one token at the end of a prompt and as two before a word, and
`encode_chat` refuses that: half of the prompt's last token would be missing. So for Llama-3 it is one token here, too.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tokenizers import AddedToken, Tokenizer

from cme295lab.finetuning.chat import TEMPLATE_NAMES, Message, add_chat_tokens, as_messages, chat_template, encode_chat
from cme295lab.finetuning.chat.masking import ChatExample, OnTooLong
from cme295lab.finetuning.chat.messages import AnyMessage
from cme295lab.finetuning.chat.packing import Filling, pack_chats
from cme295lab.finetuning.chat.templates import ChatTemplate
from cme295lab.transformer.text import TextTokenizer

TOO_LONG: tuple[str, ...] = get_args(OnTooLong)
FILLINGS: tuple[str, ...] = get_args(Filling)
ROLES = ("system", "user", "assistant", "template", "padding")
_MAX_CHARACTERS = 20_000


@dataclass(frozen=True, kw_only=True)
class MaskedToken:
    """A token of a conversation.

    Attributes:
        id: its number.
        text: as people can read it.
        role: whose text it is, one of `ROLES`.
        carries_loss: whether the model learns to say it.
        document: which conversation of a packed row, from 1; 0 is padding.
        position: within the conversation, from 0.
    """

    id: int
    text: str
    role: str
    carries_loss: bool
    document: int
    position: int


@dataclass(frozen=True, kw_only=True)
class TokenMask:
    """A conversation, written by a template.

    Attributes:
        template: its name.
        tokens: in order.
        num_dropped_messages: left out at the beginning, because all were too long.
    """

    template: str
    tokens: tuple[MaskedToken, ...]
    num_dropped_messages: int

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return sum(token.carries_loss for token in self.tokens)


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """Several conversations in rows of one length.

    Attributes:
        template: its name.
        rows: each of `seq` tokens.
        seq: tokens in a row.
        num_conversations: that are in the rows.
        left_out: number of a conversation, from 0, -> why it is in none.
    """

    template: str
    rows: tuple[tuple[MaskedToken, ...], ...]
    seq: int
    num_conversations: int
    left_out: dict[int, str]

    @property
    def utilisation(self) -> float:
        """The share of places that hold a token of a conversation."""
        return sum(token.document > 0 for row in self.rows for token in row) / (self.seq * len(self.rows))

    @property
    def target_share(self) -> float:
        """The share of places whose token carries loss."""
        return sum(token.carries_loss for row in self.rows for token in row) / (self.seq * len(self.rows))

    def documents(self, row: int) -> list[int]:
        """Lengths of the conversations in a row, in order."""
        lengths = Counter(token.document for token in self.rows[row] if token.document)
        return [lengths[document] for document in sorted(lengths)]


def token_mask(
    messages: Iterable[AnyMessage],
    tokenizer: TextTokenizer,
    template: str = "chatml",
    *,
    max_length: int | None = None,
    on_too_long: str = "refuse",
) -> TokenMask:
    """Write a conversation, and say of each token whose it is and whether it carries loss.

    Args:
        messages: `Message`s or dicts.
        tokenizer: a vocabulary; the template's control tokens are added to a copy of it.
        template: one of `TEMPLATE_NAMES`.
        max_length: most tokens; None for no limit.
        on_too_long: "refuse", or "drop-first-turns" until it fits.

    Raises:
        TypeError: if the tokenizer or a message is something else.
        ValueError: if the template is unknown, or for what `encode_chat` refuses.
    """
    writer, vocabulary = _writer(template, tokenizer)
    example, tokens = _encoded(messages, vocabulary, writer, max_length, on_too_long)
    return TokenMask(template=template, tokens=tokens, num_dropped_messages=example.num_dropped_messages)


def packed_rows(
    conversations: Sequence[Iterable[AnyMessage]],
    tokenizer: TextTokenizer,
    template: str = "chatml",
    *,
    seq: int | None = None,
    on_too_long: str = "refuse",
    filling: str = "best-fit",
) -> PackedRows:
    """Pack conversations into rows; one that does not fit a row is left out, and listed.

    Args:
        conversations: each a list of messages.
        tokenizer, template: as for `token_mask`.
        seq: tokens in a row; None takes the longest conversation's.
        on_too_long: what is done with a conversation that is longer than a row.
        filling: one of `FILLINGS`.

    Raises:
        TypeError, ValueError: as for `token_mask`; and if no conversation fits.
    """
    if filling not in FILLINGS:
        raise ValueError(f"filling must be one of {', '.join(FILLINGS)}, got {filling!r}")
    writer, vocabulary = _writer(template, tokenizer)
    written: list[tuple[ChatExample, tuple[MaskedToken, ...]]] = []
    left_out: dict[int, str] = {}
    for number, messages in enumerate(conversations):
        try:
            written.append(_encoded(messages, vocabulary, writer, seq, on_too_long))
        except ValueError as error:
            left_out[number] = str(error)
    if not written:
        raise ValueError(f"no conversation fits a row: {next(iter(left_out.values()), 'there is none')}")
    length = seq or max(len(tokens) for _, tokens in written)
    rows = _rows(written, length, filling)
    return PackedRows(
        template=template, rows=rows, seq=length, num_conversations=len(written), left_out=left_out
    )  # fmt: skip


def _rows(
    written: Sequence[tuple[ChatExample, tuple[MaskedToken, ...]]], seq: int, filling: str
) -> tuple[tuple[MaskedToken, ...], ...]:
    """The rows that `pack_chats` makes, with each token's text and role: found again by the tokens of a document."""
    data = pack_chats([example for example, _ in written], seq=seq, end_token=0, filling=_filling(filling))
    batch = data.rows(range(data.num_rows))
    by_ids: dict[tuple[int, ...], tuple[MaskedToken, ...]] = {
        tuple(token.id for token in tokens): tokens for _, tokens in written
    }
    rows = []
    for ids, documents in zip(batch.tokens.tolist(), batch.documents.tolist()):
        row: list[MaskedToken] = []
        for document in range(1, max(documents) + 1):
            wanted = tuple(number for number, owner in zip(ids, documents) if owner == document)
            row += [
                MaskedToken(**vars(token) | {"document": document, "position": place})
                for place, token in enumerate(by_ids[wanted])
            ]
        padding = MaskedToken(id=0, text="·", role="padding", carries_loss=False, document=0, position=0)
        rows.append((*row, *[padding] * (seq - len(row))))
    return tuple(rows)


def _filling(name: str) -> Filling:
    known: dict[str, Filling] = {"best-fit": "best-fit", "next-fit": "next-fit", "one-per-row": "one-per-row"}
    return known[name]


def _rule(name: str) -> Literal["refuse", "drop-first-turns"]:
    if name not in TOO_LONG:
        raise ValueError(f"on_too_long must be one of {', '.join(TOO_LONG)}, got {name!r}")
    return "refuse" if name == "refuse" else "drop-first-turns"


def _writer(name: str, tokenizer: TextTokenizer) -> tuple[ChatTemplate, TextTokenizer]:
    """A template, and a vocabulary that can write it."""
    if name not in TEMPLATE_NAMES:
        raise ValueError(f"template must be one of {', '.join(TEMPLATE_NAMES)}, got {name!r}")
    if not isinstance(tokenizer, TextTokenizer):
        raise TypeError(f"tokenizer must be a TextTokenizer, got {type(tokenizer).__name__}")
    template = chat_template(name)
    vocabulary = add_chat_tokens(tokenizer, template)
    if name == "llama-3":
        library = Tokenizer.from_str(vocabulary.tokenizer.to_str())
        library.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
        vocabulary = TextTokenizer(library, end_token=tokenizer.end_token)
    return template, vocabulary


def _encoded(
    messages: Iterable[AnyMessage],
    vocabulary: TextTokenizer,
    template: ChatTemplate,
    max_length: int | None,
    on_too_long: str,
) -> tuple[ChatExample, tuple[MaskedToken, ...]]:
    checked = as_messages(messages)
    if (length := sum(len(message.content) for message in checked)) > _MAX_CHARACTERS:
        raise ValueError(f"a conversation may have {_MAX_CHARACTERS:,} characters here, got {length:,}: shorten it")
    example = encode_chat(checked, vocabulary, template, max_length=max_length, on_too_long=_rule(on_too_long))
    if example.num_dropped_messages:
        scene = checked[:1] if checked[0].role == "system" else []
        checked = [*scene, *checked[len(scene) + example.num_dropped_messages :]]
    text = template.render(checked)
    encoding = vocabulary.tokenizer.encode(text, add_special_tokens=False)
    owners = _owners(text, checked)
    tokens = tuple(
        MaskedToken(
            id=number, text=vocabulary.token_text(number), role=owners[max(start, stop - 1)], carries_loss=loss,
            document=1, position=place,
        )
        for place, (number, (start, stop), loss) in enumerate(zip(encoding.ids, encoding.offsets, example.loss_mask))
    )  # fmt: skip
    return example, tokens


def _owners(text: str, messages: Sequence[Message]) -> list[str]:
    """For each character of the rendered text, whose it is."""
    owners, at = ["template"] * len(text), 0
    for message in messages:
        content = message.content.strip()
        start = text.find(content, at)
        if start >= 0:  # a template that changes a message leaves it to the template
            at = start + len(content)
            owners[start:at] = [message.role] * len(content)
    return owners
