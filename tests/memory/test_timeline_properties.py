"""Programs made by chance: after each step the timeline holds exactly what the program's tensors hold."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cme295lab.memory import MemoryTimeline
from tests.memory.oracle import bytes_of

STEPS = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=40)


def one_step(pool: list[Tensor], what: int, first: int, second: int) -> None:
    """Change a pool of one-dimensional tensors in one of twenty ways; few tensors keep views and releases frequent."""
    a, b = (pool[first % len(pool)], pool[second % len(pool)]) if pool else (None, None)
    if what == 0 or a is None or b is None:
        pool.append(torch.ones(second % 7 * 5))
    elif what < 5:
        del pool[first % len(pool)]
    elif what == 5:
        pool.append(a.neg())
    elif what == 6:
        pool.append(torch.cat([a, b]))
    elif what == 7:
        pool.append(a[second % 3 :])
    elif what == 8:
        pool.extend(a.chunk(3))
    elif what == 9:
        pool.append(a[:, None].expand(-1, 3)[:, 1])
    elif what == 10:
        a.add_(1)
    elif what == 11:
        pool.append(a.clone()[::2].contiguous())
    elif what == 12 and a.storage_offset() == 0 and a.untyped_storage().nbytes() == 4 * a.numel():
        a.resize_(second)
    elif what == 13:
        a.data = b.data
    elif what == 14:
        pool.append(a.detach())
    elif what == 15:
        a.set_(b.clone())
    elif what == 16:
        pool.append((a.sum() + b.sum()).reshape(1))
    elif what == 17:
        pool.append(a.to(torch.float64).float())
    elif what == 18:
        pool.append(torch.tensor([1.0] * (second % 5)) + 1)
    elif what == 19 and a.numel() and not any(t is not a and t.untyped_storage() is a.untyped_storage() for t in pool):
        a.untyped_storage().resize_(a.untyped_storage().nbytes() + 4 * second)


def bases_of(pool: list[Tensor]) -> list[Tensor]:
    """What the views were made from: they hold on to it, even when their data is replaced."""
    return [tensor._base for tensor in pool if tensor._is_view()]


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_live_bytes_are_those_of_the_programs_tensors(steps: list[tuple[int, int, int]]) -> None:
    pool: list[Tensor] = []
    seen = [0]
    with torch.no_grad(), MemoryTimeline() as m:
        for step in steps:
            one_step(pool, *step)
            assert m.live_bytes == bytes_of([*pool, *bases_of(pool)]), step
            seen.append(m.live_bytes)
        pool.clear()
        assert m.live_bytes == 0
    assert m.peak_bytes >= max(seen)
    assert sum(e.after_bytes - e.before_bytes for e in m.events) == 0
    assert all(r.died is not None for r in m.records)


@pytest.mark.parametrize("seed", range(4))
def test_graphs_made_by_chance_are_all_released(seed: int) -> None:
    """Chains of operators, layers and functions; after backward only weights, gradients and the input remain."""
    generator = random.Random(seed)
    choices = [
        lambda d: nn.Linear(d, d), lambda d: nn.Linear(d, d, bias=False), lambda d: nn.LayerNorm(d),
        lambda d: nn.Dropout(0.3), lambda d: nn.GELU(), lambda d: nn.Softmax(-1), lambda d: nn.Tanh(),
        lambda d: nn.Sequential(nn.Linear(d, d), nn.ReLU(inplace=True)), lambda d: nn.Hardswish(),
    ]  # fmt: skip
    dim = generator.choice([5, 8, 13])
    model = nn.Sequential(nn.Linear(dim, dim), *(generator.choice(choices)(dim) for _ in range(12)))
    weights = bytes_of(model.parameters())
    x = torch.randn(generator.choice([1, 3, 17]), dim)
    with MemoryTimeline(model=model) as m:
        for _ in range(2):
            loss = model(x).square().sum()
            saved = m.by_class()["activation"]
            assert saved >= bytes_of([x])
            loss.backward()
            del loss
            assert m.live_bytes == 2 * weights + bytes_of([x])
            assert m.by_class() == {"weight": weights, "gradient": weights, "input": bytes_of([x])}
