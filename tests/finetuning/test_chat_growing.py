"""A model that grows: what it was stays, new tokens take little, and ChatML is learned with them."""

import math

import pytest
import torch

from cme295lab.finetuning.adapters import add_adapters
from cme295lab.finetuning.chat import add_chat_tokens, chat_template, encode_chats, grow_vocabulary, pack_chats
from cme295lab.finetuning.qlora import freeze_in_four_bits
from cme295lab.finetuning.sft import SftConfig, train_sft
from cme295lab.pretraining.tokenizer import train_tokenizer
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.pretrained.load import load_pretrained
from tests.finetuning.tuned_models import CONFIGS, LEARNED, ROPE, model_of, tokens_of


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("num_new", [1, 3])
@pytest.mark.parametrize("init", ["mean", "normal"])
def test_old_tokens_keep_their_rows_and_logits(shape, num_new, init):
    model, before = model_of(CONFIGS[shape]), model_of(CONFIGS[shape])
    logits = before(tokens_of())
    assert grow_vocabulary(model, 31 + num_new, init=init) == num_new
    assert torch.equal(model.embedding.weight[:31], before.embedding.weight)
    assert torch.equal(model.head.weight[:31], before.head.weight)
    grown = model(tokens_of())
    assert grown.shape[-1] == 31 + num_new
    torch.testing.assert_close(grown[..., :31], logits, rtol=0, atol=1e-12)
    assert (model.head.weight is model.embedding.weight) == CONFIGS[shape].tied_head
    assert model.config.vocab_size == model.embedding.num_embeddings == model.head.out_features == 31 + num_new
    assert model.config.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    model(torch.full((1, 2), 30 + num_new)).sum().backward()  # the last new token goes in and out
    assert model.embedding.weight.grad[30 + num_new].abs().sum() > 0
    twin = DecoderLM(ModelConfig.from_dict(model.config.to_dict())).double()
    twin.load_state_dict(model.state_dict())


def test_a_mean_without_noise_by_hand_and_with_noise_near_it():
    model = model_of(LEARNED)
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.weight[:, 0] = torch.arange(31.0)  # mean 15, variance (31² - 1) / 12 = 80
    rows = model.embedding.weight.detach().clone()
    grow_vocabulary(model, 33, noise=0.0)
    assert model.embedding.weight[31:, 0].tolist() == [15.0, 15.0]
    assert not model.embedding.weight[31:, 1:].any()
    noisy = model_of(LEARNED)
    noisy.embedding.weight.data.copy_(rows)
    torch.manual_seed(8)
    grow_vocabulary(noisy, 31 + 4000, noise=0.1, seed=3)
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(8)).item()
    off = noisy.embedding.weight[31:, 0].detach() - 15.0
    assert off.std().item() == pytest.approx(0.1 * math.sqrt(80), rel=0.05)
    assert off.mean().item() == pytest.approx(0.0, abs=0.1)
    again = model_of(LEARNED)
    again.embedding.weight.data.copy_(rows)
    grow_vocabulary(again, 31 + 4000, noise=0.1, seed=4)
    assert not torch.equal(again.embedding.weight[31:], noisy.embedding.weight[31:])


def test_normal_rows_are_as_spread_as_the_old_ones_and_head_and_embedding_differ():
    model = model_of(ROPE)
    with torch.no_grad():
        model.head.weight.mul_(3)
    grow_vocabulary(model, 31 + 500, init="normal")
    for weight in (model.embedding.weight, model.head.weight):
        assert weight[31:].std().item() == pytest.approx(weight[:31].std().item(), rel=0.05)
    ratio = model.head.weight[31:] / model.embedding.weight[31:]
    assert ratio.std() > 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_new", [1, 2, 40])
def test_the_loss_rises_by_at_most_the_bound_and_by_more_with_random_rows(seed, num_new):
    """The claim of the module's docstring, on models whose logits are as large as one likes."""
    tokens, targets = tokens_of(seed=seed), tokens_of(seed=seed + 10)

    def rise(**options):
        model = model_of(LEARNED if seed % 2 else ROPE, seed=seed)
        with torch.no_grad():
            model.head.weight.mul_(1 + seed)
        before = model.loss(tokens, targets).item()
        grow_vocabulary(model, 31 + num_new, **options)
        return model.loss(tokens, targets).item() - before

    assert 0 < rise(noise=0.0) <= math.log(1 + num_new / 31)
    assert rise() == pytest.approx(rise(noise=0.0), rel=0.2)
    if num_new == 40:  # a few random rows may be lucky
        assert rise(init="normal") > rise()


def test_the_courses_model_loses_less_than_a_thousandth():
    loaded = load_pretrained("course-4m")
    tokens = torch.tensor([loaded.tokenizer.encode("The cat sat on the mat, and the dog looked at it.")])
    before = loaded.model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    grow_vocabulary(loaded.model, 4098)
    rise = loaded.model.loss(tokens[:, :-1], tokens[:, 1:]).item() - before
    assert -1e-6 <= rise <= math.log(1 + 2 / 4096)


def test_a_frozen_16_bit_model_stays_so():
    model = model_of(ROPE).to(torch.bfloat16).requires_grad_(False)
    grow_vocabulary(model, 32)
    assert {(value.dtype, value.requires_grad) for value in model.parameters()} == {(torch.bfloat16, False)}
    assert grow_vocabulary(model, 32) == 0


def test_experts_know_the_new_config():
    model = DecoderLM(ModelConfig(vocab_size=31, num_layers=1, dim=8, num_heads=2, mlp_dim=8, max_seq=8, num_experts=2,
                                  experts_per_token=1))  # fmt: skip
    grow_vocabulary(model, 33)
    assert {module.config.vocab_size for module in model.modules() if hasattr(module, "config")} == {33}


def test_chatml_is_learned_with_tokens_that_the_model_did_not_have():
    texts = ["What is red? Red. What is blue? Blue. What is green? Green. user assistant"]
    vocabulary, template = train_tokenizer(texts * 9, 290), chat_template("chatml")
    torch.manual_seed(0)
    model = DecoderLM(ModelConfig(vocab_size=vocabulary.vocab_size, num_layers=1, dim=16, num_heads=2, mlp_dim=24,
                                  max_seq=64, tied_head=True))  # fmt: skip
    grown = add_chat_tokens(vocabulary, template)
    conversations = [
        [{"role": "user", "content": f"What is {color}?"}, {"role": "assistant", "content": f"{color.title()}."}]
        for color in ("red", "blue", "green")
    ]
    examples = encode_chats(conversations, grown, template, max_length=64).examples
    chats = pack_chats(examples, seq=64, end_token=grown.end_token)
    settings = SftConfig(num_steps=12, rows_per_step=2, learning_rate=2e-2)
    with pytest.raises(ValueError, match="other vocabularies"):
        train_sft(model, chats, settings, progress=False)
    assert grow_vocabulary(model, grown.vocab_size) == 2
    end = grown.encode("<|im_end|>")[0]
    before = model(torch.tensor([examples[0].tokens[:-1]])).log_softmax(-1)[0]
    run = train_sft(model, chats, settings, progress=False)
    after = model(torch.tensor([examples[0].tokens[:-1]])).log_softmax(-1)[0]
    assert run.losses[-1] < run.losses[0] - 1
    place = max(number for number, token in enumerate(examples[0].tokens) if token == end) - 1
    assert after[place, end] > before[place, end] + 1  # it learns to end its turn


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((30,), {}, "at least the model's 31, got 30: no vocabulary shrinks"),
        ((0,), {}, "new_vocab_size must be an int of at least 1"),
        ((33,), {"init": "zeros"}, "init must be one of 'mean', 'normal', got 'zeros'"),
        ((33,), {"noise": -1.0}, "noise must be a number that is not negative, got -1.0"),
        ((33,), {"noise": math.nan}, "noise must be a number that is not negative, got nan"),
        ((33,), {"seed": -1}, "seed must be an int of at least 0"),
    ],
    ids=range(6),
)
def test_arguments_that_do_not_fit_are_refused(arguments, options, said):
    model = model_of(ROPE)
    with pytest.raises(ValueError, match=said):
        grow_vocabulary(model, *arguments, **options)
    assert model.config.vocab_size == len(model.embedding.weight) == 31


def test_models_that_cannot_grow_are_refused():
    model = model_of(ROPE)
    add_adapters(model, bottleneck=2)
    with pytest.raises(ValueError, match="the model already has bottleneck_adapters: remove it first"):
        grow_vocabulary(model, 33)
    with pytest.raises(TypeError, match="model must be a DecoderLM"):
        grow_vocabulary(torch.nn.Linear(2, 2), 33)
    quantized = model_of(ROPE).float()
    freeze_in_four_bits(quantized, skip=())
    with pytest.raises(TypeError, match=r"the model's head must be an nn\.Linear to grow, got Linear4bit"):
        grow_vocabulary(quantized, 33)
