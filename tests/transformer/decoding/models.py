"""Models to decode from: small, random, and sure of what they say."""

import torch
from hypothesis import HealthCheck, settings

from cme295lab.transformer import DecoderLM, ModelConfig

CONFIG = ModelConfig(
    vocab_size=41, num_layers=2, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_seq=64, name="tiny"
)

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


def random_model(config=CONFIG, seed=0, scale=8.0):
    """A model whose logits differ clearly: with the usual small weights they are flat, and rounding decides ties."""
    torch.manual_seed(seed)
    model = DecoderLM(config)
    with torch.no_grad():
        for layer in model.layers:
            for matrix in (layer.attention.query, layer.attention.key, layer.attention.value, layer.attention.out,
                           layer.mlp.gate, layer.mlp.up, layer.mlp.down):  # fmt: skip
                matrix.weight.mul_(scale)
        model.embedding.weight.mul_(20)
        model.head.weight.mul_(15)
    return model.eval()


def context_free_model(logits, name="context-free"):
    """A model that gives the same logits whatever it has read: all tokens have one and the same vector."""
    config = ModelConfig(
        vocab_size=len(logits), num_layers=1, dim=8, num_heads=2, mlp_dim=8, max_seq=4096, name=name
    )  # fmt: skip
    model = DecoderLM(config)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.ones(8))
        for matrix in (model.layers[0].attention.out, model.layers[0].mlp.down):
            matrix.weight.zero_()
        # The last norm gives a vector of ones, whose product with the head is then the logits.
        model.head.weight.copy_(torch.tensor(logits)[:, None].expand(-1, 8) / 8)
    return model.eval()


def all_paths(model, prompt, length):
    """Every continuation of this length, and the model's logits before each of its tokens: {tokens: [logits, …]}."""
    paths = {(): []}
    for _ in range(length):
        tokens = torch.tensor([[*prompt, *path] for path in paths])
        with torch.no_grad():
            last = model(tokens)[:, -1].double()
        paths = {
            (*path, token): [*seen, logits]
            for (path, seen), logits in zip(paths.items(), last)
            for token in range(model.config.vocab_size)
        }
    return paths
