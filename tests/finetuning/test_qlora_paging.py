"""Optimizer states in pages: not a bit changes, what moves is counted, and the budget holds at every moment."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cme295lab.finetuning.qlora import PagedAdamW, PagePool
from cme295lab.pretraining.optim import AdamW

CPU = torch.device("cpu")
SHAPES = ((7, 5), (3,), (4, 4), (11,), (2, 3, 5))  # 35, 3, 16, 11, 30 elements; 8 bytes of states each
TOTAL_BYTES = 8 * (35 + 3 + 16 + 11 + 30)
LARGEST_BYTES = 8 * 35


def parameters(dtype: torch.dtype = torch.float32) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (f"p{i}", nn.Parameter(torch.randn(shape, generator=generator).to(dtype))) for i, shape in enumerate(SHAPES)
    ]


def give_gradients(pairs: list[tuple[str, nn.Parameter]], step: int, *, without: tuple[str, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for name, parameter in pairs:
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = None if name in without else gradient


def run(optimizer: AdamW, pairs: list[tuple[str, nn.Parameter]], steps: range) -> list[Tensor]:
    for step in steps:
        give_gradients(pairs, step, without=("p2",) if step == 1 else ())
        optimizer.step()
    return [parameter.detach().clone() for _, parameter in pairs]


@pytest.mark.parametrize("order", ["alternating", "forward"])
@pytest.mark.parametrize("budget", [LARGEST_BYTES, LARGEST_BYTES + 100, TOTAL_BYTES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_paged_adamw_changes_no_bit_of_the_courses_adamw(dtype: torch.dtype, budget: int, order: str) -> None:
    mine, theirs = parameters(dtype), parameters(dtype)
    paged = PagedAdamW(mine, budget_bytes=budget, lr=0.01, order=order)
    plain = AdamW(theirs, lr=0.01, foreach=False)
    for found, expected in zip(run(paged, mine, range(5)), run(plain, theirs, range(5)), strict=True):
        assert torch.equal(found, expected)
    expected_states = plain.state_tensors()
    assert paged.state_tensors().keys() == expected_states.keys()
    for key, state in paged.state_tensors().items():
        assert torch.equal(state, expected_states[key]), key


def test_paged_adamw_follows_torchs() -> None:
    # Torch blends the mean with lerp, ours with two products: a few units in the last place of fp32, 2⁻²⁴ each.
    mine, theirs = parameters(), parameters()
    paged = PagedAdamW(mine, budget_bytes=LARGEST_BYTES, lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    reference = torch.optim.AdamW([p for _, p in theirs], lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    for step in range(6):
        for pairs, optimizer in ((mine, paged), (theirs, reference)):
            give_gradients(pairs, step)
            optimizer.step()
    for (_, found), (_, expected) in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=3e-6, atol=1e-7)


def test_fp32_states_of_16_bit_parameters_are_those_of_an_fp32_update_rounded() -> None:
    mine = parameters(torch.bfloat16)
    paged = PagedAdamW(mine, budget_bytes=LARGEST_BYTES, lr=0.01, state_dtype=torch.float32)
    wide = [(name, nn.Parameter(p.detach().float())) for name, p in mine]
    plain = AdamW(wide, lr=0.01, foreach=False)
    for step in range(4):
        give_gradients(mine, step)
        for (_, parameter), (_, copy) in zip(mine, wide, strict=True):
            assert parameter.grad is not None
            copy.grad = parameter.grad.float()
        paged.step()
        plain.step()
        for (_, parameter), (_, copy) in zip(mine, wide, strict=True):
            copy.data = copy.detach().to(torch.bfloat16)
            assert torch.equal(parameter, copy)
            copy.data = copy.detach().float()
    assert paged.num_state_bytes == TOTAL_BYTES
    assert paged.state_of("p0")["m"].dtype == torch.float32


def same_size_pages(num: int) -> list[tuple[str, nn.Parameter]]:
    return [(f"p{i}", nn.Parameter(torch.ones(10))) for i in range(num)]


@pytest.mark.parametrize(("order", "pages_moved"), [("forward", 6), ("alternating", 4)])
def test_bytes_of_a_step_are_those_of_the_formula(order: str, pages_moved: int) -> None:
    pairs = same_size_pages(6)  # 80 bytes of states each; room for two
    optimizer = PagedAdamW(pairs, budget_bytes=2 * 80, order=order)
    give_gradients(pairs, 0)
    optimizer.step()
    first = optimizer.counts
    assert (first.births, first.page_ins, first.page_outs) == (6, 0, 4)
    for step in (1, 2, 3):
        before = optimizer.counts
        give_gradients(pairs, step)
        optimizer.step()
        moved = optimizer.counts - before
        assert (moved.bytes_in, moved.bytes_out) == (80 * pages_moved, 80 * pages_moved)
        assert moved.hits == 6 - pages_moved
    assert optimizer.peak_device_bytes == optimizer.device_bytes == 160
    assert optimizer.num_state_bytes == 480


def test_nothing_moves_when_everything_fits() -> None:
    pairs = parameters()
    optimizer = PagedAdamW(pairs, budget_bytes=TOTAL_BYTES)
    run(optimizer, pairs, range(3))
    assert optimizer.counts.bytes_moved == 0
    assert optimizer.device_bytes == TOTAL_BYTES


def test_a_smaller_budget_sends_states_home_at_once_and_changes_no_bit() -> None:
    mine, theirs = parameters(), parameters()
    paged = PagedAdamW(mine, budget_bytes=TOTAL_BYTES, lr=0.01)
    run(paged, mine, range(2))
    paged.budget_bytes = LARGEST_BYTES
    assert paged.device_bytes <= LARGEST_BYTES
    found = run(paged, mine, range(2, 4))
    paged.budget_bytes = TOTAL_BYTES
    found = run(paged, mine, range(4, 6))
    expected = run(AdamW(theirs, lr=0.01, foreach=False), theirs, range(6))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_states_go_to_and_from_an_optimizer_that_is_not_paged() -> None:
    mine, theirs = parameters(), parameters()
    paged, plain = PagedAdamW(mine, budget_bytes=LARGEST_BYTES, lr=0.01), AdamW(theirs, lr=0.01, foreach=False)
    run(plain, theirs, range(3))
    for (_, parameter), (_, source) in zip(mine, theirs, strict=True):
        parameter.data.copy_(source)
    paged.load_state_tensors(plain.state_tensors())
    assert paged.device_bytes == 0
    for found, expected in zip(run(paged, mine, range(3, 5)), run(plain, theirs, range(3, 5)), strict=True):
        assert torch.equal(found, expected)
    plain.load_state_tensors(paged.state_tensors())
    assert torch.equal(plain.state_of("p4")["v"], paged.state_of("p4")["v"])


def test_loading_replaces_the_states_that_are_paged_in() -> None:
    pairs = parameters()
    optimizer = PagedAdamW(pairs, budget_bytes=TOTAL_BYTES, lr=0.01)
    run(optimizer, pairs, range(2))
    earlier = {key: state.clone() for key, state in optimizer.state_tensors().items()}
    run(optimizer, pairs, range(2, 4))
    optimizer.load_state_tensors(earlier)
    assert torch.equal(optimizer.state_of("p0")["m"], earlier["p0/m"])
    assert optimizer.state_of("p0")["step"] == 2


def test_what_is_shown_of_a_state_is_a_copy() -> None:
    pairs = parameters()
    optimizer = PagedAdamW(pairs, budget_bytes=TOTAL_BYTES)
    assert dict(optimizer.state_of("p0")) == {"step": 0}
    run(optimizer, pairs, range(1))
    shown = optimizer.state_of("p0")["m"]
    shown.zero_()
    assert optimizer.state_of("p0")["m"].abs().sum() > 0


def test_frozen_parameters_take_no_room_and_need_no_budget() -> None:
    large = nn.Parameter(torch.ones(1000), requires_grad=False)
    small = nn.Parameter(torch.ones(3))
    optimizer = PagedAdamW([("large", large), ("small", small)], budget_bytes=24)
    small.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.num_state_bytes == 24


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"budget_bytes": LARGEST_BYTES - 1}, ValueError, r"'p0'.*280 bytes.*at least 280"),
        ({"budget_bytes": 0}, ValueError, "budget_bytes must be at least 1, got 0"),
        ({"budget_bytes": 1e6}, TypeError, "budget_bytes must be an int"),
        ({"budget_bytes": TOTAL_BYTES, "order": "random"}, ValueError, "order must be one of 'alternating', 'forward'"),
        ({"budget_bytes": TOTAL_BYTES, "state_dtype": torch.int8}, TypeError, "state_dtype must be None or one of"),
        ({"budget_bytes": TOTAL_BYTES, "lr": -1.0}, ValueError, "lr must be"),
    ],
    ids=["too small", "nothing", "float", "order", "dtype", "lr"],
)
def test_paged_adamw_refuses(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        PagedAdamW(parameters(), **options)  # type: ignore[arg-type]


def test_a_budget_lowered_too_far_is_refused_and_nothing_changes() -> None:
    pairs = parameters()
    optimizer = PagedAdamW(pairs, budget_bytes=TOTAL_BYTES)
    with pytest.raises(ValueError, match="never divided"):
        optimizer.budget_bytes = LARGEST_BYTES - 1
    assert optimizer.budget_bytes == TOTAL_BYTES
    run(optimizer, pairs, range(1))
    assert optimizer.device_bytes == TOTAL_BYTES


@settings(max_examples=40, deadline=None)
@given(
    accesses=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40),
    budget=st.integers(5, 14),
)
def test_pool_is_an_lru_cache_within_its_budget(accesses: list[tuple[int, bool]], budget: int) -> None:
    sizes = [1, 2, 3, 5, 2, 4]  # bytes of each page
    pool, values = PagePool(budget), [0] * 6
    model: OrderedDict[int, bool] = OrderedDict()  # page -> whether it was changed, in the order of use
    bytes_in = bytes_out = 0
    for number, changes in accesses:
        name = f"page {number}"
        is_new = name not in pool
        if number not in model:
            while sum(sizes[page] for page in model) + sizes[number] > budget:
                page, changed = model.popitem(last=False)
                bytes_out += sizes[page] * changed
            bytes_in += 0 if is_new else sizes[number]
        model[number] = model.pop(number, False) or changes or is_new
        if is_new:
            pool.add(name, (sizes[number],), torch.uint8, CPU)
        with pool.use(name, CPU, changes=changes) as page_now:
            assert page_now.tolist() == [values[number]] * sizes[number]
            if changes:
                values[number] += 1
                page_now.add_(1)
        assert pool.resident_bytes <= pool.peak_bytes <= budget
        assert pool.resident == tuple(f"page {page}" for page in model)
        assert (pool.counts.bytes_in, pool.counts.bytes_out) == (bytes_in, bytes_out)


def test_a_page_in_use_stays_and_a_full_pool_says_so() -> None:
    pool = PagePool(8)
    for name in ("a", "b", "c"):
        pool.add(name, (4,), torch.uint8, CPU)
    with pool.use("a", CPU) as a:
        a.fill_(7)
        with pool.use("b", CPU), pytest.raises(ValueError, match="no room for 4 more bytes: a, b are in use"):
            pool.use("c", CPU).__enter__()
    assert pool.home("a").tolist() == [7] * 4


def test_pool_refuses_a_name_twice_and_a_name_unknown() -> None:
    pool = PagePool(8)
    pool.add("a", (4,), torch.uint8, CPU)
    assert pool.home("a").tolist() == [0] * 4  # before it was ever used
    with pytest.raises(ValueError, match="called 'a' already"):
        pool.put("a", torch.zeros(2), CPU)
    with pytest.raises(ValueError, match="no page called 'b'; there are a"):
        pool.use("b", CPU).__enter__()
    with pytest.raises(ValueError, match="smaller than the page of 'b', which takes 12 bytes"):
        pool.put("b", torch.zeros(3), CPU)


def test_counts_print_with_units() -> None:
    pairs = same_size_pages(3)
    optimizer = PagedAdamW(pairs, budget_bytes=80)
    give_gradients(pairs, 0)
    optimizer.step()
    assert str(optimizer.counts) == "0 hits, 3 new pages, 0 in (0 B), 2 out (160 B)"
