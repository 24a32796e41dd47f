"""The real SmolLM2-135M-Instruct: read by this library and by `transformers` out of the same file.

These tests download nothing: without the file they are skipped. `cme295lab fetch smollm2` fetches it.
"""

import importlib.util
import shutil

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cme295lab.transformer import load_pretrained, save_pretrained
from cme295lab.transformer.pretrained.cache import cached_file, is_fetched
from cme295lab.transformer.pretrained.gguf_file import GgufFile
from cme295lab.transformer.pretrained.registry import SMOLLM2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_fetched(SMOLLM2), reason="SmolLM2 is not on this machine: cme295lab fetch smollm2"),
]
PROMPT = "<|im_start|>user\nCan I put my teddy bear in the washing machine?<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [
    PROMPT,
    "Numbers 12345 and 1999, 3.14;  spaces   and\n\nlines\tтекст 日本語 🙂 don't",
    "def f(x):\n    return x**2  # café\n\n\n    \n",
]


@pytest.fixture(scope="module")
def ours():
    return load_pretrained("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, ours):
    """`transformers` reading the GGUF file itself, which takes accelerate; else a folder that this library wrote."""
    if importlib.util.find_spec("accelerate"):
        file = cached_file(SMOLLM2)
        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    folder = tmp_path_factory.mktemp("smollm2")
    save_pretrained(folder, ours.model, ours.tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    shutil.rmtree(folder)
    return model


def test_parameters_are_the_published_number(ours):
    assert sum(parameter.numel() for parameter in ours.model.parameters()) == 134_515_008
    assert ours.model.config.num_parameters == 134_515_008
    assert ours.tokenizer.vocab_size == ours.model.config.vocab_size == 49_152
    assert ours.tokenizer.token_text(ours.tokenizer.end_token) == "<|im_end|>"


def test_numbers_are_those_of_the_gguf_package():
    file, theirs = GgufFile(cached_file(SMOLLM2)), gguf.GGUFReader(cached_file(SMOLLM2))
    assert len(file.tensors) == len(theirs.tensors) == 272
    for tensor in theirs.tensors[-30:]:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(tensor.name).numpy(), expected.reshape(tensor.shape[::-1].tolist()))


def test_tokens_are_those_of_transformers(ours):
    file = cached_file(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in TEXTS:
        tokens = ours.tokenizer.encode(text)
        assert tokens == tokenizer(text)["input_ids"]
        assert ours.tokenizer.decode(tokens) == text


def test_logits_are_those_of_transformers(ours, theirs):
    """Logits are of size 1 to 30, sums over 30 layers in fp32; the angles of RoPE are rounded in another order."""
    tokens = torch.tensor([ours.tokenizer.encode(TEXTS[1])])
    with torch.no_grad():
        torch.testing.assert_close(ours.model(tokens), theirs(tokens).logits, atol=5e-4, rtol=1e-5)


def test_greedy_continuation_is_that_of_transformers(ours, theirs):
    tokens = torch.tensor([ours.tokenizer.encode(PROMPT)])
    config = GenerationConfig(do_sample=False, max_new_tokens=24, pad_token_id=0, eos_token_id=None)
    expected = theirs.generate(tokens, generation_config=config, attention_mask=torch.ones_like(tokens))[0].tolist()
    with torch.no_grad():
        for _ in range(24):
            tokens = torch.cat((tokens, ours.model(tokens)[:, -1:].argmax(-1)), dim=1)
    assert tokens[0].tolist() == expected
    assert "teddy bear" in ours.tokenizer.decode(expected[-24:])
