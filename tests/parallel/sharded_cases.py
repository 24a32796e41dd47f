"""Models, batches and gradients that the tests of stage 3 share; everything runs on ranks."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cme295lab.parallel import FullyShardedModel
from cme295lab.parallel.communication import transport
from cme295lab.transformer import DecoderLM, ModelConfig

VOCAB, SEQ = 53, 10


def make_config(**changes: Any) -> ModelConfig:
    shape = dict(
        vocab_size=VOCAB, num_layers=3, dim=18, num_heads=3, mlp_dim=35, max_seq=SEQ, mlp="gelu", norm="layernorm",
        position="learned", bias=True,
    )  # fmt: skip
    return ModelConfig(**(shape | changes))


def make_batch(offset: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * dist.get_rank() + offset)
    return torch.randint(VOCAB, (2, 2, SEQ), generator=generator)


def mean_over_ranks(gradient: Tensor | None, like: Tensor) -> Tensor:
    flat = torch.zeros(like.numel()) if gradient is None else gradient.flatten().contiguous()
    transport.all_reduce(flat)
    return flat.mul_(1 / dist.get_world_size()).view(like.shape)


def plain_gradients(model: nn.Module, backward: Callable[[nn.Module], None]) -> dict[str, Tensor]:
    """The oracle: the plain model, whole on every rank, and one all-reduce per gradient."""
    backward(model)
    return {n: mean_over_ranks(p.grad, p) for n, p in model.named_parameters() if p.requires_grad}


def sharded_gradients(sharded: FullyShardedModel) -> dict[str, Tensor]:
    """The gradients of all shards, put together; all weights must have been freed."""
    assert not any(part.is_gathered for unit in sharded.units for part in unit.parts)
    assert all(p.isnan().all() and p.untyped_storage().nbytes() <= 4 for p in sharded.module.parameters())
    found = {}
    for part in sharded.trained:
        flat = torch.empty(part.layout.num_elements)
        gradient = torch.zeros_like(part.shard) if part.gradient is None else part.gradient
        transport.all_gather(flat, gradient)
        found |= {slot.name: flat[slot.start : slot.stop].view(slot.shape) for slot in part.layout.slots}
    return found


def assert_same_gradients(
    model: nn.Module, backward: Callable[[nn.Module], None], *, sharded_backward: Any = None, **options: Any
) -> FullyShardedModel:
    wanted = plain_gradients(copy.deepcopy(model), backward)
    sharded = FullyShardedModel(model, **options)
    (sharded_backward or backward)(sharded)
    found = sharded_gradients(sharded)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), f"{name}: {(found[name] - gradient).abs().max()}"
    return sharded


def mean_loss(model: nn.Module, offset: int = 0) -> Tensor:
    tokens, targets = make_batch(offset)
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def run_backward(model: nn.Module) -> None:
    mean_loss(model).backward()


class Awkward(nn.Module):
    """Layers with an unused parameter, a module that runs twice, a parameter of the root's own, nested outputs."""

    class Layer(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.linear, self.unused, self.index = nn.Linear(7, 7), nn.Parameter(torch.randn(5)), index

        def forward(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            x = torch.tanh(self.linear(inputs["x"][0]))
            if self.index == 1 and dist.get_rank() == 0:
                x = x * self.unused.sum()  # unused on all ranks but the first
            return {"x": (x, "text")}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Linear(4, 7), nn.Parameter(torch.randn(7))
        self.layers = nn.ModuleList(Awkward.Layer(index) for index in range(3))
        self.middle, self.buffer = nn.LayerNorm(7), nn.Buffer(torch.full((2,), float(dist.get_rank())))

    def forward(self, x: Tensor) -> Tensor:
        state: dict[str, Any] = {"x": (self.stem(x), "text")}
        for index in (0, 1, 0, 2):
            state = self.layers[index](state)
            if index == 1:
                state = {"x": (self.middle(state["x"][0]), "text")}
        return (state["x"][0] * self.scale).sum()


def awkward_backward(model: nn.Module) -> None:
    model(torch.randn(3, 4, generator=torch.Generator().manual_seed(dist.get_rank()))).backward()


class Recomputed(nn.Module):
    """A layer that keeps nothing but its input."""

    def __init__(self, layer: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.layer, self.use_reentrant = layer, use_reentrant

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.layer, *args, use_reentrant=self.use_reentrant)


def recomputed(model: DecoderLM, *, use_reentrant: bool) -> DecoderLM:
    model.layers = nn.ModuleList(Recomputed(layer, use_reentrant) for layer in model.layers)
    return model


def norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def padded_bytes(sharded: FullyShardedModel) -> int:
    return sum(4 * part.layout.num_elements for part in sharded.trained + sharded.frozen)
