"""Perplexity against a loop over single tokens; quality of the course's model against bits; errors on N(0, 1)."""

import math
from pydoc_data.topics import topics

import pytest
import torch
from torch import nn

from cme295lab.quantization import nf4
from cme295lab.quantization.integers import absmax_quantize
from cme295lab.quantization.quality import mean_loss, perplexity, quality_against_bits, quantized_weights
from cme295lab.quantization.schemes import SCHEMES, gaussian_errors, integer_scheme, nf4_scheme
from cme295lab.transformer import load_pretrained


class Bigrams(nn.Module):
    """A model that looks at one token: logits of the next one are a row of a table."""

    def __init__(self, vocab=7, dim=5):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.middle = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens):
        return self.head(self.dropout(self.middle(self.embedding(tokens))))


class Fixed(nn.Module):
    """A model with the logits it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, -1)


class Last(Bigrams):
    """A model that returns the logits of the last position alone."""

    def forward(self, tokens):
        return super().forward(tokens)[:, -1]


@pytest.fixture(scope="module")
def course():
    """The course's model, and 257 tokens of English for it."""
    pretrained = load_pretrained("course-4m")
    return pretrained.model, torch.tensor(pretrained.tokenizer.encode(topics["assignment"]))[:257]


def one_by_one(model, rows):
    """Mean loss, a token at a time, from probabilities in float64."""
    losses = []
    with torch.no_grad():
        for row in rows:
            for place in range(1, len(row)):
                logits = model.eval()(row[None, :place])[0, -1].double()
                losses.append(-math.log(float(logits.softmax(-1)[row[place]])))
    return sum(losses) / len(losses)


def test_perplexity_worked_by_hand():
    model = Fixed(torch.log(torch.tensor([0.5, 0.25, 0.25])))
    # 0 1 2 0: the probabilities of 1, 2, 0 are 1/4, 1/4, 1/2: exp(mean log) = 32^(1/3)
    assert perplexity(model, torch.tensor([0, 1, 2, 0])) == pytest.approx(32 ** (1 / 3), rel=1e-6)
    assert perplexity(Fixed(torch.zeros(50)), torch.arange(20)) == pytest.approx(50, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_loss_equals_a_loop_over_tokens_for_rows_and_pieces(batch_size):
    torch.manual_seed(1)
    model, rows = Bigrams(), torch.randint(0, 7, (5, 9))
    assert mean_loss(model, rows, batch_size=batch_size) == pytest.approx(one_by_one(model, rows), rel=1e-6)
    text = rows.flatten()  # 45 tokens, 44 to predict
    for context in (None, 1, 4, 7, 43, 44, 100):
        got = mean_loss(model, text, context=context, batch_size=batch_size)
        assert got == pytest.approx(one_by_one(model, [text]), rel=1e-6)  # bigrams see one token in any piece


def test_pieces_of_a_text_see_their_own_tokens_alone(course):
    model, tokens = course
    tokens = tokens[:31]
    pieces = [tokens[start : start + 13] for start in (0, 12, 24)]  # each token is predicted once; the last has 7
    assert mean_loss(model, tokens, context=12) == pytest.approx(one_by_one(model, pieces), rel=1e-5)
    assert mean_loss(model, tokens) == pytest.approx(one_by_one(model, [tokens]), rel=1e-5)


def test_an_output_with_logits_is_read():
    class Wrapped(Bigrams):
        def forward(self, tokens):
            return type("Output", (), {"logits": super().forward(tokens)})()

    torch.manual_seed(0)
    wrapped = Wrapped()
    plain = Bigrams()
    plain.load_state_dict(wrapped.state_dict())
    tokens = torch.randint(0, 7, (20,))
    assert mean_loss(wrapped, tokens) == mean_loss(plain, tokens)


def test_weights_are_replaced_and_come_back_in_the_same_memory():
    model = Bigrams()
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.named_parameters()}
    with quantized_weights(model, integer_scheme(4, granularity="channel"), skip=("head",)) as change:
        expected = absmax_quantize(before["middle.weight"][0], bits=4, granularity="channel")
        assert torch.equal(model.middle.weight, expected.dequantize())
        for name in ("embedding.weight", "middle.bias", "head.weight"):
            assert torch.equal(model.get_parameter(name), before[name][0])
    assert change.num_weights == 25
    assert change.bits_per_weight == pytest.approx(8 * (13 + 5 * 4) / 25)
    original = before["middle.weight"][0].detach().double()
    noise = (expected.dequantize() - original).square().sum()
    ratio = 10 * math.log10(float(original.square().sum() / noise))
    assert change.signal_to_noise_db == pytest.approx(ratio)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.data_ptr() == before[name][1]


def test_weights_come_back_after_an_error_and_after_a_scheme_that_writes_into_them():
    model, calls = Bigrams().train(), []

    def fails_at_the_second(w):
        calls.append(w.shape)
        if len(calls) == 2:
            raise KeyError("no such luck")
        return w.zero_(), 1.0

    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.randint(0, 7, (10,))
    with pytest.raises(KeyError):
        quality_against_bits(model, tokens, {"bad": fails_at_the_second})
    assert len(calls) == 2
    model.forward = Fixed(torch.full((7,), math.nan)).forward
    with pytest.raises(ValueError, match="the loss is NaN"):
        quality_against_bits(model, tokens, {"int2": SCHEMES["int2 absmax, tensor"]})
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.training


def test_a_shared_weight_is_quantised_once_and_left_alone_where_it_is_skipped():
    model = Bigrams()
    model.head.weight = model.embedding.weight
    with quantized_weights(model, SCHEMES["int2 absmax, tensor"]) as change:
        assert torch.equal(model.head.weight, model.embedding.weight)
        assert len(model.embedding.weight.unique()) <= 3
    assert change.num_weights == 25 + 35
    twice = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    twice[1].weight = twice[0].weight
    with quantized_weights(twice, SCHEMES["nf4"]) as change:
        assert change.num_weights == 32
    with quantized_weights(twice, SCHEMES["nf4"], skip=("1",)) as change:
        assert change.num_weights == 16


def test_quality_of_the_courses_model_falls_with_its_bits(course):
    model, tokens = course
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.named_parameters()}
    names = ["original", *(f"int{bits} absmax, block 64" for bits in (8, 4, 3, 2)), "nf4", "nf4, double", "fp4"]
    names += ["int3 absmax, tensor", "int2 absmax, tensor", "nvfp4", "mxfp4", "mxfp8"]
    schemes = {name: SCHEMES[name] for name in names}
    rows = {row.scheme: row for row in quality_against_bits(model, tokens, schemes, skip=("head",), context=128)}
    assert list(rows) == names
    loss = {name: row.loss for name, row in rows.items()}
    assert rows["original"].perplexity == pytest.approx(perplexity(model, tokens, context=128), rel=1e-9)
    assert rows["original"].signal_to_noise_db == math.inf
    assert loss["int8 absmax, block 64"] == pytest.approx(loss["original"], abs=0.002)
    # rounding may happen to help by a little, so neighbours that are close are not told apart
    for better, worse in [("original", "int4"), ("int4", "int3"), ("int3", "int2")]:
        name = better if better == "original" else f"{better} absmax, block 64"
        assert loss[name] < loss[f"{worse} absmax, block 64"] + 0.005
    assert loss["int2 absmax, block 64"] > loss["original"] + 0.2
    for bits in (3, 2):
        assert loss[f"int{bits} absmax, tensor"] > loss[f"int{bits} absmax, block 64"] + 0.05
    assert loss["mxfp8"] == pytest.approx(loss["original"], abs=0.01)
    for name in ("nf4", "nf4, double", "fp4", "nvfp4", "mxfp4"):
        assert loss["original"] - 0.005 < loss[name] < loss["int2 absmax, block 64"]
    assert rows["nf4"].signal_to_noise_db > rows["int4 absmax, block 64"].signal_to_noise_db
    assert rows["nf4"].bits_per_weight == 4.5
    assert rows["nf4, double"].bits_per_weight == pytest.approx(4.127, abs=0.002)
    assert rows["int4 absmax, block 64"].bits_per_weight == 4.5
    assert rows["mxfp4"].bits_per_weight == 4.25
    assert rows["nvfp4"].bits_per_weight == pytest.approx(4.5, abs=0.002)  # and 32 bits for each tensor
    for row in rows.values():
        assert row.perplexity == pytest.approx(math.exp(row.loss))
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.data_ptr() == before[name][1]


def test_errors_on_a_normal_distribution_are_the_published_ones():
    names = ("nf4", "int8 absmax, block 64", "int4 zero-point, block 64", "int4 absmax, block 64", "fp4", "nf4, double")
    names += ("nvfp4", "mxfp4", "mxfp6", "mxfp8")
    errors = gaussian_errors({name: SCHEMES[name] for name in names}, num_values=2**19)
    assert errors["nf4"] == pytest.approx(0.00845, rel=0.02)
    assert errors["int8 absmax, block 64"] == pytest.approx(3.5e-5, rel=0.02)
    # min-max has two constants per block, 5 bits per value here, and is a little better than NF4 with 4.5
    assert errors["int4 zero-point, block 64"] == pytest.approx(0.00829, rel=0.02)
    assert errors["nf4"] < errors["int4 absmax, block 64"] < errors["fp4"]
    assert errors["nf4"] < errors["nf4, double"] < errors["nf4"] * 1.01
    assert errors["nf4"] < errors["nvfp4"] < errors["mxfp4"]  # a scale with a mantissa before a power of two
    # e2m3 and e4m3 have the same mantissa. Blocks of normal values need no range, and the longer format clamps more:
    # its largest number is 1.75 times the highest power of two, e2m3's is 1.875 times
    assert errors["mxfp6"] < errors["mxfp8"] < errors["mxfp4"] / 10


def test_every_scheme_returns_what_its_quantiser_does_and_counts_its_bits():
    w = torch.randn(10, 70)  # 700 values: 11 blocks of 64, the last one of 60
    for name, scheme in SCHEMES.items():
        w_hat, bits = scheme(w)
        assert w_hat.shape == w.shape, name
        assert w_hat.dtype == w.dtype, name
        assert bits > 0, name
    assert SCHEMES["original"](w)[1] == 32
    assert SCHEMES["original"](w.half())[1] == 16
    assert SCHEMES["int3 zero-point, channel"](w)[1] == 8 * (263 + 10 * 8) / 700
    assert torch.equal(nf4_scheme(block_size=128)(w)[0], nf4.quantize(w, block_size=128).dequantize())
    assert torch.equal(
        integer_scheme(5, granularity="tensor")(w)[0], absmax_quantize(w, bits=5, granularity="tensor").dequantize()
    )


def test_bad_input_is_refused():
    model, tokens = Bigrams(), torch.randint(0, 7, (10,))
    with pytest.raises(TypeError, match=r"tokens must hold integers, got torch.float32"):
        perplexity(model, torch.randn(10))
    for bad in (torch.tensor(3), tokens[:1], tokens[:0], tokens[:, None], torch.zeros(0, 5, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"tokens must be \(tokens,\) or \(rows, tokens\)"):
            perplexity(model, bad)
    with pytest.raises(ValueError, match="context cuts one long text"):
        perplexity(model, tokens.reshape(2, 5), context=3)
    for option in ("context", "batch_size"):
        for value in (0, -1, True, 1.5):
            with pytest.raises(ValueError, match=f"{option} must be an int of at least 1"):
                perplexity(model, tokens, **{option: value})
    with pytest.raises(ValueError, match=r"logits must be \(1, 9\) and vocab, got shape"):
        perplexity(Last(), tokens)
    with pytest.raises(ValueError, match="schemes is empty"):
        quality_against_bits(model, tokens, {})
    for skip, message in [
        (("tail",), r"skip names \['tail'\], but the nn.Linear layers are \['head', 'middle'\]"),
        (("head", "middle"), "no nn.Linear layer to quantise"),
        ("head", "skip must be a collection of names"),
    ]:
        with pytest.raises(ValueError, match=message):
            quality_against_bits(model, tokens, skip=skip)
    for scheme, message in [
        (lambda w: (w.half(), 16.0), "it must return the numbers as they are read back"),
        (lambda w: (w[:1], 16.0), "it must return the numbers as they are read back"),
        (lambda w: (w * math.inf, 16.0), "what the scheme made of the weight of middle has 25 of 25"),
        (lambda w: (w, 0.0), "bits per weight of middle must be a positive number"),
        (lambda w: (w, math.nan), "bits per weight of middle must be a positive number"),
    ]:
        with pytest.raises(ValueError, match=message):
            quality_against_bits(model, tokens, {"bad": scheme})
    for num_values, row_length in [(0, 64), (100, 64), (64, 0)]:
        with pytest.raises(ValueError, match="num_values must be a positive multiple"):
            gaussian_errors(num_values=num_values, row_length=row_length)
