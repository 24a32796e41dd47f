import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.finetuning.chat import ChatExample, chat_template, encode_chat, pack_chats
from cme295lab.pretraining.packing import MixtureDataset, PackedDataset
from cme295lab.pretraining.trainer import TrainConfig, Trainer, evaluate
from cme295lab.pretraining.trainer.gradients import accumulate_gradients
from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.transformer.decoding import generate
from tests.finetuning.templates import LONG, SHORT, tokenizer

END = 0
FILLINGS = ("best-fit", "next-fit", "one-per-row")


def example_of(*marked: int) -> ChatExample:
    """Tokens, those with loss as negative numbers."""
    return ChatExample([abs(token) for token in marked], [token < 0 for token in marked])


# First tokens, a token that carries loss, and more of both kinds
CHATS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 50), min_size=1, max_size=6),
        st.integers(-50, -1),
        st.lists(st.integers(-50, 50).filter(bool), max_size=8),
    ),
    min_size=1, max_size=9,
)  # fmt: skip


def tiny_model(**changes) -> DecoderLM:
    torch.manual_seed(0)
    shape = dict(vocab_size=420, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_dim=24, max_seq=128)
    return DecoderLM(ModelConfig(**shape | changes)).double()


def test_packing_by_hand():
    """The picture in the module's docstring."""
    user, hi, assistant, yes, end, why, so = range(1, 8)
    chats = [example_of(user, hi, assistant, -yes, -end), example_of(user, why, assistant, -so, -end)]
    data = pack_chats(chats, seq=11, end_token=END, filling="next-fit")
    batch = data.batch(0, 1)
    assert batch.tokens.tolist() == [[user, hi, assistant, yes, end, user, why, assistant, so, end, END]]
    no = -100
    assert batch.targets.tolist() == [[no, no, yes, end, no, no, no, so, end, no, no]]
    assert batch.documents.tolist() == [[1] * 5 + [2] * 5 + [0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]]
    assert (data.num_tokens, data.num_targets, batch.num_targets) == (10, 4, 4)
    assert data.utilisation == 10 / 11
    assert data.target_share == 0.4


@pytest.mark.parametrize("filling", FILLINGS)
@settings(max_examples=20, deadline=None)
@given(drawn=CHATS, seq=st.integers(15, 33))
def test_every_conversation_is_whole_and_predicts_what_the_assistant_says(filling, drawn, seq):
    chats = [example_of(*before, answer, *after) for before, answer, after in drawn]
    data = pack_chats(chats, seq=seq, end_token=END, filling=filling)
    batch = data.batch(0, data.num_rows)
    found = []
    for row in range(data.num_rows):
        for number in range(1, int(batch.documents[row].max()) + 1):
            here = batch.documents[row] == number
            tokens, targets, positions = (part[row][here].tolist()
                                          for part in (batch.tokens, batch.targets, batch.positions))  # fmt: skip
            assert positions == list(range(len(tokens)))
            found.append((tokens, targets))
        assert (batch.targets[row][batch.documents[row] == 0] == -100).all()
        assert (batch.tokens[row][batch.documents[row] == 0] == END).all()
    expected = [
        (chat.tokens, [token if on else -100 for token, on in zip(chat.tokens[1:], chat.loss_mask[1:])] + [-100])
        for chat in chats
    ]
    assert sorted(found) == sorted(expected)
    assert data.num_targets == batch.num_targets == sum(chat.num_targets for chat in chats)
    assert data.num_tokens == sum(len(chat.tokens) for chat in chats)
    assert data.utilisation == pytest.approx((batch.documents > 0).double().mean().item())
    if filling == "one-per-row":
        assert data.num_rows == len(chats)


def test_packing_real_conversations_wastes_less_than_padding():
    chats = [encode_chat(messages, tokenizer(), chat_template("chatml")) for messages in (SHORT, LONG, LONG[1:])] * 8
    longest = max(len(chat.tokens) for chat in chats)
    packed, padded = (pack_chats(chats, seq=longest, end_token=1, filling=filling)
                      for filling in ("best-fit", "one-per-row"))  # fmt: skip
    by_hand = sum(len(chat.tokens) for chat in chats) / (len(chats) * longest)
    assert padded.utilisation == pytest.approx(by_hand)
    assert packed.utilisation > 1.2 * padded.utilisation
    assert packed.largest_token == max(token for chat in chats for token in chat.tokens)
    assert pack_chats(chats, seq=longest, end_token=999).largest_token == 999


class PerRow(DecoderLM):
    """Says each row's answer, its second token, with a probability that gives the loss wished for."""

    def forward(self, tokens, **_):
        wished = {5: 1.0, 6: 3.0}  # token of the answer -> loss
        logits = torch.zeros(*tokens.shape, self.config.vocab_size, dtype=torch.float64)
        for row, answer in enumerate(tokens[:, 1].tolist()):
            others = self.config.vocab_size - 1
            # e^a / (e^a + others) = e^-loss
            logits[row, :, answer] = math.log(others / math.expm1(wished[answer]))
        return logits + 0 * self.embedding.weight.sum()


def test_loss_is_a_mean_over_tokens_not_over_conversations():
    """2 tokens at 1.0 and 6 at 3.0: 2.5; a mean of means would be 2.0."""
    chats = [example_of(1, -5, -5), example_of(1, *[-6] * 6)]
    data = pack_chats(chats, seq=8, end_token=END, filling="one-per-row")
    batch = data.batch(0, 2)
    assert sorted((batch.targets != -100).sum(1).tolist()) == [2, 6]
    model = PerRow(tiny_model().config).double()

    def loss(part):
        return model.loss(part.tokens, part.targets, documents=part.documents, positions=part.positions).item()

    losses = sorted(loss(part) for part in batch.split(1))
    assert losses == pytest.approx([1.0, 3.0], rel=1e-12)
    assert loss(batch) == pytest.approx(2.5, rel=1e-12)
    assert accumulate_gradients(model, batch.split(1))[0] == pytest.approx(2.5, rel=1e-12)
    assert evaluate(model, data, rows=1) == pytest.approx(2.5, rel=1e-12)


@pytest.mark.parametrize("filling", FILLINGS)
def test_packed_conversations_have_the_loss_and_gradient_that_they_have_alone(filling):
    model = tiny_model()
    chats = [encode_chat(messages, tokenizer(), chat_template("chatml")) for messages in (SHORT, LONG[:3], LONG[1:3])]
    total = torch.zeros((), dtype=torch.float64)
    for chat in chats:
        surprise = -F.log_softmax(model(torch.tensor([chat.tokens]))[0], dim=-1)
        places = [place for place, on in enumerate(chat.loss_mask) if on]
        total = total + sum(surprise[place - 1, chat.tokens[place]] for place in places)
    alone = total / sum(chat.num_targets for chat in chats)
    expected = torch.autograd.grad(alone, list(model.parameters()))

    data = pack_chats(chats, seq=128, end_token=1, filling=filling)
    batch = data.batch(0, data.num_rows)
    loss = model.loss(batch.tokens, batch.targets, positions=batch.positions, documents=batch.documents)
    torch.testing.assert_close(loss, alone, rtol=1e-10, atol=0)
    for gradient, wanted in zip(torch.autograd.grad(loss, list(model.parameters())), expected):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-12)


def test_a_model_that_is_trained_on_conversations_answers_and_stops():
    """Through the trainer of pretraining, and then asked with the generation prompt."""
    template = chat_template("chatml")
    answers = {"Hi": "Hello!", "Who?": "Me.", "Why? Tell me.": "No."}
    pairs = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
             for question, answer in answers.items()]  # fmt: skip
    data = pack_chats([encode_chat(pair, tokenizer(), template) for pair in pairs], seq=128, end_token=1)
    model = tiny_model(dim=32, mlp_dim=64).float()
    config = TrainConfig(num_steps=50, rows_per_step=data.num_rows, seq=128, learning_rate=0.02, weight_decay=0.0)
    losses = Trainer(model, data, config, progress=False).run().losses
    assert losses[-1] < 0.05 < 4 < losses[0]
    end = tokenizer().tokenizer.token_to_id(template.end_of_turn)
    for question, answer in answers.items():
        prompt = template.render([{"role": "user", "content": question}], add_generation_prompt=True)
        prompt_tokens = tokenizer().encode(prompt, special=False)
        (new,) = generate(model, [prompt_tokens], max_new_tokens=12, end_token=end).tokens
        assert tokenizer().decode(new) == answer + template.end_of_turn


def test_conversations_mix_with_text_and_are_a_pure_function_of_the_step():
    chats = [example_of(1, n, -n) for n in range(2, 40)]
    first, second = (pack_chats(chats, seq=7, end_token=END, seed=3) for _ in range(2))
    assert torch.equal(first.batch(9, 3).targets, second.batch(9, 3).targets)
    text = PackedDataset([[n, n] for n in range(50, 60)], seq=7, end_token=END)
    batch = MixtureDataset({"chat": first, "text": text}, {"chat": 1, "text": 1}).batch(0, 40)
    chat_rows = batch.tokens[:, 0] == 1
    assert 0 < int(chat_rows.sum()) < 40
    assert ((batch.targets[chat_rows] != -100).sum(1) <= 2).all()
    assert (batch.targets[~chat_rows][:, 0] != -100).all()


def test_packing_refuses():
    chats = [example_of(1, -2), example_of(1, 2, 3, -4), example_of(1, 2, -3)]
    with pytest.raises(ValueError, match=r"2 of 3 conversations are longer than a row of seq 2 tokens \(number 1 has"):
        pack_chats(chats, seq=2, end_token=END)
    with pytest.raises(ValueError, match=r"1 of 3 conversations are longer than a row of seq 3 tokens \(number 1 has"):
        pack_chats(chats, seq=3, end_token=END)
    assert pack_chats(chats, seq=4, end_token=END).num_rows == 3
    with pytest.raises(ValueError, match="examples is empty"):
        pack_chats([], seq=8, end_token=END)
    with pytest.raises(ValueError, match=r"best-fit, next-fit, one-per-row \(a conversation is never cut\), got 'cut"):
        pack_chats(chats, seq=8, end_token=END, filling="cut-to-fit")
    with pytest.raises(TypeError, match="example 0 must be what encode_chat gives, got list"):
        pack_chats([[1, 2]], seq=8, end_token=END)
    with pytest.raises(ValueError, match="must not be negative"):
        pack_chats(chats, seq=8, end_token=-1)
