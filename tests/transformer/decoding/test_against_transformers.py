"""The same tokens and the same distributions as `transformers.generate`, on the same random weights."""

import math

import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process as theirs

from cme295lab.transformer import ModelConfig
from cme295lab.transformer.decoding import (
    Sampling,
    beam_search,
    generate,
    next_token_probabilities,
    penalize_repetition,
)
from tests.transformer.decoding.models import CONFIG, random_model

PROMPT = [3, 1, 4, 1, 5]
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [7]]
PAD = 39  # not 0: beam search of `transformers` takes that for "none given"


def llama_of(model):
    """`transformers`' model with the weights of ours."""
    config = model.config
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, max_position_embeddings=config.max_seq, rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, tie_word_embeddings=False,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )).eval()  # fmt: skip
    names = {
        "embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "layers": "model.layers",
        "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "attention": "self_attn",
        "query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj",
        "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
    }  # fmt: skip
    weights = {
        ".".join(names.get(part, part) for part in name.split(".")): weight
        for name, weight in model.state_dict().items()
    }
    llama.load_state_dict(weights)
    return llama


@pytest.fixture(scope="module", params=[0, 1, 2])
def pair(request):
    model = random_model(seed=request.param)
    return model, llama_of(model)


def their_tokens(llama, prompts, **options):
    """What `transformers` adds to prompts of one length, or of several with padding on the left."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = llama.generate(tokens, attention_mask=mask, pad_token_id=PAD, **{"do_sample": False, **options})
    return output[:, width:].tolist()


@pytest.mark.parametrize("cache", ["static", "growing", None], ids=str)
def test_greedy_is_token_for_token_the_same(pair, cache):
    model, llama = pair
    expected = their_tokens(llama, PROMPTS, max_new_tokens=30)
    assert generate(model, PROMPTS, max_new_tokens=30, cache=cache).tokens == expected
    assert len(set(expected[0])) > 2


def test_the_end_token_ends_where_theirs_does(pair):
    model, llama = pair
    free = generate(model, PROMPTS, max_new_tokens=20).tokens
    end_token = free[1][3]
    expected = their_tokens(llama, PROMPTS, max_new_tokens=20, eos_token_id=end_token)
    for row, ours in zip(expected, generate(model, PROMPTS, max_new_tokens=20, end_token=end_token).tokens):
        assert row[: len(ours)] == ours
        assert set(row[len(ours) :]) <= {PAD}


@pytest.mark.parametrize("penalty", [0.8, 1.2, 2.5])
def test_greedy_with_a_repetition_penalty_is_the_same(pair, penalty):
    model, llama = pair
    sampling = Sampling(repetition_penalty=penalty, top_k=1)
    ours = generate(model, [PROMPT], max_new_tokens=30, sampling=sampling, seed=0).tokens
    assert ours == their_tokens(llama, [PROMPT], max_new_tokens=30, repetition_penalty=penalty)
    assert ours != generate(model, [PROMPT], max_new_tokens=30).tokens


@pytest.mark.parametrize("stop_early", [False, True], ids=["patient", "early"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 5])
def test_beam_search_finds_the_same_answers(pair, num_beams, length_penalty, stop_early):
    model, llama = pair
    for end_token in (None, 7, 12):
        output = llama.generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long), do_sample=False,
            max_new_tokens=12, num_beams=num_beams, num_return_sequences=num_beams, length_penalty=length_penalty,
            early_stopping=True if stop_early else "never", pad_token_id=PAD, eos_token_id=end_token,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        result = beam_search(
            model, PROMPT, num_beams=num_beams, max_new_tokens=12, length_penalty=length_penalty,
            length_penalty_form="power", end_token=end_token, stop_early=stop_early,
        )  # fmt: skip
        assert [beam.score for beam in result.beams] == pytest.approx(output.sequences_scores.tolist(), rel=1e-4)
        for beam, row in zip(result.beams, output.sequences[:, len(PROMPT) :].tolist()):
            assert row[: len(beam.tokens)] == beam.tokens
            assert set(row[len(beam.tokens) :]) <= {PAD}


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 8, 200])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95])
@pytest.mark.parametrize("min_p", [None, 0.02, 0.3])
def test_processed_distributions_are_the_same(temperature, top_k, top_p, min_p):
    logits = torch.randn(16, 120) * torch.linspace(0.5, 5, 16)[:, None]
    scores = logits
    for value, warper in (
        (temperature, theirs.TemperatureLogitsWarper), (top_k, theirs.TopKLogitsWarper),
        (top_p, theirs.TopPLogitsWarper), (min_p, theirs.MinPLogitsWarper),
    ):  # fmt: skip
        if value is not None:
            scores = warper(value)(None, scores)
    ours = next_token_probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    assert (ours > 0).equal(scores > -math.inf) or temperature == 0.3  # probabilities may underflow, sets may not
    torch.testing.assert_close(ours, scores.softmax(-1), rtol=1e-5, atol=1e-7)


def test_penalized_logits_are_the_same():
    logits, previous = torch.randn(7, 50) * 4, torch.randint(50, (7, 20))
    for penalty in (0.7, 1.0, 1.4):
        expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(previous, logits)
        assert penalize_repetition(logits, previous, penalty).equal(expected)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=2.5),
        Sampling(temperature=3.0, top_k=5),
        Sampling(temperature=3.0, top_p=0.8),
        Sampling(temperature=3.0, min_p=0.15),
        Sampling(temperature=4.0, top_k=6, top_p=0.9, min_p=0.05),
    ],
    ids=["temperature", "top-k", "top-p", "min-p", "all"],
)
def test_samples_come_from_the_same_distribution(sampling):
    model = random_model(ModelConfig(**{**CONFIG.to_dict(), "vocab_size": 9}), seed=5, scale=4.0)
    num = 3000
    torch.manual_seed(1)
    options = dict(temperature=sampling.temperature, top_k=sampling.top_k or 0, top_p=sampling.top_p or 1.0)
    expected = their_tokens(
        llama_of(model), [[3, 1, 4]] * num, do_sample=True, max_new_tokens=2, min_p=sampling.min_p, **options
    )
    ours = generate(model, [[3, 1, 4]] * num, max_new_tokens=2, sampling=sampling, seed=2).tokens
    counts = torch.zeros(2, 81, dtype=torch.long)
    for which, rows in enumerate((expected, ours)):
        counts[which] = torch.tensor([first * 9 + second for first, second in rows]).bincount(minlength=81)
    often = counts.sum(0) >= 10
    table = torch.cat((counts[:, often], counts[:, ~often].sum(1, keepdim=True)), dim=1)
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] > 8
    assert stats.chi2_contingency(table.numpy()).pvalue > 0.01
