"""Caches: the same answer as without one, however tokens arrive; truncated, reordered, padded; what is refused."""

import dataclasses

import pytest
import torch

from cme295lab.memory import kv_cache_bytes
from cme295lab.transformer import DecoderLM, GrowingCache, ModelConfig, StaticCache, kv_bytes

LLAMA = ModelConfig(
    name="llama", vocab_size=41, num_layers=3, dim=24, num_heads=6, num_kv_heads=2, mlp_dim=40, max_seq=32
)
GPT = dataclasses.replace(
    LLAMA, name="gpt", num_kv_heads=6, mlp="gelu", norm="layernorm", position="learned", tied_head=True, bias=True
)
MOE = dataclasses.replace(LLAMA, name="moe", num_experts=4, experts_per_token=2)
CONFIGS = pytest.mark.parametrize("config", [LLAMA, GPT, MOE], ids=lambda config: config.name)
CACHES = pytest.mark.parametrize("kind", ["static", "growing"])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def make_model(config, *, attention="flash", dtype=torch.float64):
    """A model whose logits differ clearly: weights of the usual start make them all nearly equal."""
    torch.manual_seed(0)
    model = DecoderLM(config, attention=attention)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def make_cache(kind, config, batch_size, *, dtype=torch.float64, left_padding=None):
    if kind == "static":
        return StaticCache(config, batch_size=batch_size, max_seq=24, dtype=dtype, left_padding=left_padding)
    return GrowingCache(config, batch_size=batch_size, dtype=dtype, left_padding=left_padding)


def read(model, cache, tokens, sizes):
    """The logits of tokens that arrive in chunks of these sizes."""
    return torch.cat([model(chunk, cache=cache) for chunk in tokens.split(sizes, dim=1)], dim=1)


@CONFIGS
@CACHES
@pytest.mark.parametrize("attention", ["flash", "standard"])
def test_logits_are_those_without_a_cache(config, kind, attention):
    model = make_model(config, attention=attention)
    tokens = torch.randint(config.vocab_size, (3, 9))
    plain = model(tokens)
    for sizes in ([1] * 9, [9], [3, 1, 1, 4], [1, 8]):
        cache = make_cache(kind, config, 3)
        cached = read(model, cache, tokens, sizes)
        torch.testing.assert_close(cached, plain, rtol=0, atol=1e-12)
        assert cached.argmax(-1).equal(plain.argmax(-1))
        assert cache.length == 9


@CONFIGS
@CACHES
def test_greedy_text_is_the_same_in_fp32(config, kind):
    model = make_model(config, dtype=torch.float32)
    tokens = torch.randint(config.vocab_size, (2, 4))
    cache, step = make_cache(kind, config, 2, dtype=torch.float32), tokens
    for _ in range(8):
        step = model(step, cache=cache, num_logits=1)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), dim=1)
        assert step.equal(tokens[:, -1:])


def test_bf16_goes_through_the_cache():
    model = make_model(LLAMA, dtype=torch.bfloat16)
    tokens = torch.randint(LLAMA.vocab_size, (1, 9))
    cached = read(model, make_cache("static", LLAMA, 1, dtype=torch.bfloat16), tokens, [4, 1, 1, 3])
    scale = model(tokens).abs().max().item()
    torch.testing.assert_close(cached, model(tokens), rtol=0, atol=0.05 * scale)  # roundings of 8 bits, thrice a layer


@CONFIGS
@CACHES
@pytest.mark.parametrize("attention", ["flash", "standard"])
def test_left_padded_rows_are_as_each_alone(config, kind, attention):
    model = make_model(config, attention=attention)
    padding = [0, 3, 2]
    tokens = torch.randint(config.vocab_size, (3, 8))
    alone = [model(tokens[row : row + 1, skip:])[0] for row, skip in enumerate(padding)]
    for sizes in ([4, 1, 1, 2], [8], [1, 1, 6]):
        cache = make_cache(kind, config, 3, left_padding=torch.tensor(padding))
        cached = read(model, cache, tokens, sizes)
        assert cached.isfinite().all()
        for row, skip in enumerate(padding):
            torch.testing.assert_close(cached[row, skip:], alone[row], rtol=0, atol=1e-12)


@CACHES
def test_what_was_cut_off_leaves_no_trace(kind):
    model = make_model(LLAMA)
    tokens, wrong = torch.randint(LLAMA.vocab_size, (2, 2, 12))
    cache = make_cache(kind, LLAMA, 2)
    read(model, cache, tokens[:, :6], [6])
    read(model, cache, wrong[:, :5], [2, 3])
    cache.truncate(6)
    assert cache.length == 6
    torch.testing.assert_close(read(model, cache, tokens[:, 6:], [1, 5]), model(tokens)[:, 6:], rtol=0, atol=1e-12)
    cache.truncate(0)
    torch.testing.assert_close(read(model, cache, wrong, [12]), model(wrong), rtol=0, atol=1e-12)


@CACHES
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_rows_go_on_as_others_were(kind, padded):
    model = make_model(LLAMA)
    padding = torch.tensor([2, 0, 1]) if padded else None
    tokens, rows = torch.randint(LLAMA.vocab_size, (3, 11)), torch.tensor([2, 2, 0])
    cache = make_cache(kind, LLAMA, 3, left_padding=padding)
    read(model, cache, tokens[:, :7], [7])
    cache.reorder(rows)
    after = read(model, cache, tokens[:, 7:], [1, 3])
    history = torch.cat((tokens[rows, :7], tokens[:, 7:]), dim=1)
    for row in range(3):
        skip = padding[rows[row]].item() if padded else 0
        alone = model(history[row : row + 1, skip:])[0, -4:]
        torch.testing.assert_close(after[row], alone, rtol=0, atol=1e-12)


def test_num_logits_are_the_last_ones():
    model, tokens = make_model(LLAMA), torch.randint(LLAMA.vocab_size, (2, 7))
    everything = model(tokens)
    for number in (1, 3, 7):
        torch.testing.assert_close(model(tokens, num_logits=number), everything[:, -number:], rtol=0, atol=1e-13)
    for number in (0, 8):
        with pytest.raises(ValueError, match=f"num_logits must be 1 to 7.*got {number}"):
            model(tokens, num_logits=number)


@CACHES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_measured_bytes_are_the_formulas(kind, dtype):
    model = make_model(LLAMA, dtype=dtype)
    cache = make_cache(kind, LLAMA, 5, dtype=dtype)
    read(model, cache, torch.randint(LLAMA.vocab_size, (5, 9)), [7, 1, 1])
    held = 24 if kind == "static" else 9
    by_hand = 2 * 3 * 2 * 4 * held * 5 * dtype.itemsize  # K and V, layers, kv heads, head_dim
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    formula = kv_bytes(LLAMA, num_positions=held, batch_size=5, bytes_per_number=dtype.itemsize)
    assert cache.num_bytes == by_hand == formula == kv_cache_bytes(LLAMA, seq=held, batch=5, dtype=name)


def test_static_cache_writes_in_place_and_growing_cache_is_as_large_as_its_content():
    model, tokens = make_model(LLAMA), torch.randint(LLAMA.vocab_size, (1, 8))
    static, growing = make_cache("static", LLAMA, 1), make_cache("growing", LLAMA, 1)
    bytes_before, address = static.num_bytes, static._keys.data_ptr()
    sizes = []
    for chunk in tokens.split([3, 1, 4], dim=1):
        model(chunk, cache=static)
        model(chunk, cache=growing)
        sizes.append(growing.num_bytes)
    assert (static.num_bytes, static._keys.data_ptr()) == (bytes_before, address)
    assert sizes == [sizes[0], sizes[0] * 4 // 3, sizes[0] * 8 // 3]
    growing.truncate(3)
    assert growing.num_bytes == sizes[0]


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("config", [LLAMA, GPT], ids=lambda config: config.name)
def test_packed_documents_are_as_each_alone(config, attention):
    model = make_model(config, attention=attention)
    lengths = [[4, 1, 6], [7, 4]]
    tokens = torch.randint(config.vocab_size, (2, 11))
    documents = torch.tensor([[number for number, size in enumerate(row) for _ in range(size)] for row in lengths])
    positions = torch.tensor([[place for size in row for place in range(size)] for row in lengths])
    packed = model(tokens, positions=positions, documents=documents)
    for row, sizes in enumerate(lengths):
        alone = torch.cat([model(part[None])[0] for part in tokens[row].split(sizes)])
        torch.testing.assert_close(packed[row], alone, rtol=0, atol=1e-12)
    # Without new positions RoPE gives the same, since it sees distances alone; a table of positions does not.
    unmoved = model(tokens, documents=documents)
    assert torch.allclose(unmoved, packed, rtol=0, atol=1e-10) == (config.position == "rope")


def test_loss_of_packed_documents_has_the_gradients_of_each_alone():
    with torch.enable_grad():
        model, lengths = make_model(LLAMA), [4, 3]
        tokens = torch.randint(LLAMA.vocab_size, (1, 8))
        documents, positions = torch.tensor([[0, 0, 0, 0, 1, 1, 1]]), torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
        model.loss(tokens[:, :-1], tokens[:, 1:], positions=positions, documents=documents).backward()
        packed = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        start = 0
        for size in lengths:
            part = slice(start, start + size)
            (model.loss(tokens[:, :-1][:, part], tokens[:, 1:][:, part]) * size / 7).backward()
            start += size
    for ours, parameter in zip(packed, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-9, atol=1e-14)


@CACHES
def test_gradients_flow_through_a_growing_cache_to_earlier_chunks(kind):
    """What prompt tuning needs; a cache that writes in place refuses, rather than forget gradients."""
    with torch.enable_grad():
        model, tokens = make_model(LLAMA), torch.randint(LLAMA.vocab_size, (1, 6))
        cache = make_cache(kind, LLAMA, 1)
        if kind == "static":
            with pytest.raises(ValueError, match=r"StaticCache .* run the model under torch.no_grad"):
                model(tokens[:, :4], cache=cache)
            return
        model(tokens[:, :4], cache=cache)
        model(tokens[:, 4:], cache=cache).square().sum().backward()
        cached = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        model(tokens)[:, 4:].square().sum().backward()
    for ours, parameter in zip(cached, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-9, atol=1e-10)


def test_a_cache_that_refused_is_as_it_was():
    model, tokens = make_model(LLAMA), torch.randint(LLAMA.vocab_size, (1, 40))
    cache = make_cache("static", LLAMA, 1)
    model(tokens[:, :20], cache=cache)
    with pytest.raises(ValueError, match="5 more positions do not fit a cache of max_seq 24 that holds 20"):
        model(tokens[:, 20:25], cache=cache)
    torch.testing.assert_close(model(tokens[:, 20:24], cache=cache), model(tokens[:, :24])[:, 20:], rtol=0, atol=1e-12)


@CACHES
def test_bad_arguments_of_caches(kind):
    model, tokens = make_model(LLAMA), torch.randint(LLAMA.vocab_size, (2, 3))
    with pytest.raises(ValueError, match="batch_size must be an int of at least 1"):
        make_cache(kind, LLAMA, 0)
    with pytest.raises(ValueError, match=r"left_padding must have a number per row, shape \(2,\)"):
        make_cache(kind, LLAMA, 2, left_padding=torch.tensor([1]))
    with pytest.raises(ValueError, match="left_padding must not be negative"):
        make_cache(kind, LLAMA, 2, left_padding=torch.tensor([1, -1]))
    with pytest.raises(ValueError, match="tokens have 2 rows, the cache 3"):
        model(tokens, cache=make_cache(kind, LLAMA, 3))
    with pytest.raises(TypeError, match=r"is torch.float64, the cache is torch.float32: make it with dtype"):
        model(tokens, cache=make_cache(kind, LLAMA, 2, dtype=torch.float32))
    cache = make_cache(kind, LLAMA, 2)
    with pytest.raises(ValueError, match="33 more positions"):
        model(tokens[:, :1].expand(2, 33), cache=cache)
    with pytest.raises(ValueError, match="length must be 0 to 0"):
        cache.truncate(1)
    with pytest.raises(ValueError, match="rows must name a row for each of 2"):
        cache.reorder(torch.tensor([0]))
    with pytest.raises(ValueError, match="cannot be given with a cache"):
        model(tokens, cache=cache, positions=torch.zeros(2, 3, dtype=torch.long))


def test_bad_arguments_of_the_model():
    model, tokens = make_model(LLAMA), torch.randint(LLAMA.vocab_size, (2, 3))
    with pytest.raises(ValueError, match="max_seq must be at most the model's 32, got 33"):
        StaticCache(LLAMA, batch_size=1, max_seq=33)
    with pytest.raises(ValueError, match="max_seq must be an int of at least 1"):
        StaticCache(LLAMA, batch_size=1, max_seq=0)
    with pytest.raises(ValueError, match=r"positions must be 0 to max_seq - 1 = 31"):
        model(tokens, positions=torch.full((2, 3), 32))
    with pytest.raises(ValueError, match=r"documents must have the shape of tokens, \(2, 3\), got \(3,\)"):
        model(tokens, documents=torch.zeros(3, dtype=torch.long))
    for token in (-1, 41):
        with pytest.raises(ValueError, match=rf"tokens must be 0 to vocab_size - 1 = 40, got {token}"):
            model(torch.tensor([[0, token]]))
