"""AdamW with fp32 masters: three implementations with the same bits, PyTorch's numbers, and bytes counted."""

import math

import pytest
import torch
from torch import Tensor

from cme295lab import simulator
from cme295lab.precision.adamw import (
    FUSED_BYTES_PER_PARAMETER,
    UNFUSED_BYTES_PER_PARAMETER,
    AdamWOptions,
    adamw_step_fused,
    adamw_step_reference,
    adamw_step_unfused,
)
from cme295lab.precision.adamw_optimizer import MixedPrecisionAdamW

OPTIONS = {"learning_rate": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
NAMES = ("master", "gradient", "exp_avg", "exp_avg_sq", "weight16")


def make_state(*shape: int, weight=torch.bfloat16, gradient=torch.bfloat16, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    master = torch.randn(shape, generator=generator)
    g = (100 * torch.randn(shape, generator=generator)).to(gradient)
    return [master, g, torch.zeros(shape), torch.zeros(shape), master.to(weight)]


def same_bits(x: Tensor, y: Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32}[x.element_size()]
    return x.dtype is y.dtype and torch.equal(x.view(integers), y.view(integers))


@pytest.mark.parametrize("step_function", [adamw_step_unfused, adamw_step_fused], ids=["unfused", "fused"])
@pytest.mark.parametrize("gradient", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (33, 65), (2, 1024)], ids=str)
def test_kernels_are_bit_equal_to_the_reference_over_steps(shape, weight, gradient, step_function):
    expected = make_state(*shape, weight=weight, gradient=gradient)
    got = [x.clone() for x in expected]
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 5):
        for states, update in ((expected, adamw_step_reference), (got, step_function)):
            update(*states, step=step, inverse_scale=1 / 96, **OPTIONS)
        for name, x, y in zip(NAMES, expected, got):
            assert same_bits(x, y), f"{name} differs after step {step}"
        gradients = (100 * torch.randn(shape, generator=generator)).to(gradient)
        expected[1].copy_(gradients)
        got[1].copy_(gradients)
    assert not torch.equal(expected[0], make_state(*shape)[0])


def test_one_step_worked_by_hand():
    """g = 32/64 = 1/2: m = .05, v = .0125, both corrections give back g and g²; so the step is the learning rate."""
    master, gradient = torch.tensor([2.0]), torch.tensor([32.0], dtype=torch.float16)
    m, v, weight = torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
    adamw_step_reference(master, gradient, m, v, weight, step=1, inverse_scale=1 / 64, **OPTIONS)
    assert m.item() == pytest.approx(0.05, rel=1e-6)
    assert v.item() == pytest.approx(0.0125, rel=1e-6)
    assert master.item() == pytest.approx(2 * (1 - 3e-3 * 0.1) - 3e-3, rel=1e-6)  # 1.9964
    assert weight.item() == 2.0  # bf16 has no number between 2 - 2^-7 and 2: the master alone remembers the step
    assert gradient.item() == 32.0


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_masters_follow_torch_adamw_for_100_steps(scale):
    master, _, m, v, weight = make_state(37, 5)
    parameter = torch.nn.Parameter(master.clone())
    theirs = torch.optim.AdamW([parameter], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    generator = torch.Generator().manual_seed(2)
    for step in range(1, 101):
        g = torch.randn(master.shape, generator=generator)
        parameter.grad = g
        theirs.step()
        adamw_step_reference(master, g * scale, m, v, weight, step=step, inverse_scale=1 / scale, **OPTIONS)
    torch.testing.assert_close(master, parameter.detach(), rtol=0, atol=1e-6)
    assert same_bits(weight, master.bfloat16())
    state = theirs.state[parameter]
    torch.testing.assert_close(m, state["exp_avg"], rtol=0, atol=1e-6)
    torch.testing.assert_close(v, state["exp_avg_sq"], rtol=1e-5, atol=0)


def test_steps_too_small_for_16_bits_add_up_in_the_master():
    master, _, m, v, weight = make_state(1)
    master.fill_(1.0)
    gradient = torch.ones(1, dtype=torch.bfloat16)
    for step in range(1, 101):
        adamw_step_reference(
            master, gradient, m, v, weight, step=step, learning_rate=1e-4, betas=(0.9, 0.999), eps=0.0, weight_decay=0.0
        )
    assert master.item() == pytest.approx(1 - 100 * 1e-4, abs=1e-5)
    assert weight.item() == pytest.approx(0.98828125)  # 1 - 3 * 2^-8; in bf16 alone 1 - 1e-4 is 1, a hundred times
    assert (torch.ones(1, dtype=torch.bfloat16) - 1e-4).item() == 1.0


@pytest.mark.parametrize("num_elements", [1024, 5000])
def test_bytes_are_counted_as_the_formula_says(num_elements):
    state = make_state(num_elements)
    with simulator.trace() as fused:
        adamw_step_fused(*state, step=1, **OPTIONS)
    n = num_elements
    reads = {name: fused.tensors[tensor].read_bytes for name, tensor in TENSORS.items()}
    writes = {name: fused.tensors[tensor].written_bytes for name, tensor in TENSORS.items()}
    assert reads == {"master": 4 * n, "gradient": 2 * n, "exp_avg": 4 * n, "exp_avg_sq": 4 * n, "weight16": 0}
    assert writes == {"master": 4 * n, "gradient": 0, "exp_avg": 4 * n, "exp_avg_sq": 4 * n, "weight16": 2 * n}
    assert fused.requested_bytes == fused.distinct_bytes == FUSED_BYTES_PER_PARAMETER * n
    with simulator.trace() as unfused:
        adamw_step_unfused(*state, step=2, **OPTIONS)
    assert unfused.requested_bytes == unfused.distinct_bytes == UNFUSED_BYTES_PER_PARAMETER * n
    assert len(unfused.launches) == 12
    assert len(fused.launches) == 1


TENSORS = {
    "master": "master", "gradient": "gradient", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "weight16": "weight",
}  # fmt: skip


@pytest.mark.parametrize("step_function", [adamw_step_reference, adamw_step_unfused, adamw_step_fused])
def test_gradient_is_only_read_and_nothing_beyond_the_end_is_written(step_function):
    long = [torch.full((40,), 7.0).to(x.dtype) for x in make_state(1)]
    views = [x[:33] for x in long]
    step_function(*views, step=1, **OPTIONS)
    assert torch.equal(long[1], torch.full((40,), 7.0).bfloat16())
    for name, x in zip(NAMES, long):
        assert (x[33:] == 7).all(), name


@pytest.mark.parametrize("step_function", [adamw_step_reference, adamw_step_unfused, adamw_step_fused])
def test_empty_tensors_are_no_work(step_function):
    step_function(*make_state(0, 3), step=1, **OPTIONS)


def test_infinite_gradients_reach_the_states():
    """Nothing is hidden: who does not skip the step sees what it does."""
    for step_function in (adamw_step_reference, adamw_step_fused):
        state = make_state(3)
        state[1][1] = math.inf
        step_function(*state, step=1, **OPTIONS)
        assert [x[1].isfinite().item() for x in (state[0], state[2], state[3])] == [False, False, False]
        assert state[0][::2].isfinite().all()


BAD_TENSORS = [
    ("master", lambda x: x.half(), TypeError, "master must be one of torch.float32"),
    ("gradient", lambda x: x.double(), TypeError, "gradient must be one of"),
    ("exp_avg", lambda x: x.bfloat16(), TypeError, "exp_avg must be one of torch.float32"),
    ("exp_avg_sq", lambda x: x[:2], ValueError, "master's shape"),
    ("weight16", lambda x: x.float(), TypeError, "weight16 must be one of torch.float16"),
    ("weight16", lambda x: x.tolist(), TypeError, "weight16 must be a torch.Tensor"),
    ("gradient", lambda x: x.to("meta"), ValueError, "device"),
    ("exp_avg", lambda x: x.T, ValueError, "contiguous"),
]


@pytest.mark.parametrize("step_function", [adamw_step_reference, adamw_step_unfused, adamw_step_fused])
@pytest.mark.parametrize(("name", "change", "error", "message"), BAD_TENSORS, ids=[str(i) for i in range(8)])
def test_tensors_that_do_not_fit_are_refused(name, change, error, message, step_function):
    state = dict(zip(NAMES, make_state(3, 3)))
    state[name] = change(state[name])
    with pytest.raises(error, match=message):
        step_function(*state.values(), step=1, **OPTIONS)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 0}, {"step": 1.5}, {"inverse_scale": 0.0}, {"inverse_scale": math.inf}, {"learning_rate": -1.0},
        {"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"eps": math.nan}, {"weight_decay": -0.1},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_out_of_range_are_refused(change):
    for step_function in (adamw_step_reference, adamw_step_fused):
        with pytest.raises(ValueError, match=next(iter(change))):
            step_function(*make_state(3), **({"step": 1} | OPTIONS | change))


def test_optimizer_is_torch_adamw_on_masters_and_survives_a_round_trip():
    def make() -> tuple[torch.nn.Module, MixedPrecisionAdamW]:
        torch.manual_seed(0)
        whole = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
        masters = {name: p.detach().clone() for name, p in whole.named_parameters()}
        model = whole.to(torch.bfloat16)
        return model, MixedPrecisionAdamW(model.named_parameters(), AdamWOptions(**OPTIONS), masters=masters)

    def train(model: torch.nn.Module, optimizer: MixedPrecisionAdamW, steps: range) -> None:
        for seed in steps:
            optimizer.zero_grad()
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).bfloat16()
            (model(x).float().square().mean() * 64).backward()
            optimizer.step(inverse_scale=1 / 64, learning_rate=1e-2 / (1 + seed))

    model, optimizer = make()
    assert optimizer.num_state_bytes == 12 * sum(p.numel() for p in model.parameters())
    train(model, optimizer, range(3))
    saved = optimizer.state_dict()
    train(model, optimizer, range(3, 6))

    other, resumed = make()
    resumed.load_state_dict(saved)
    train(other, resumed, range(3, 6))
    for (name, p), q in zip(model.named_parameters(), other.parameters()):
        assert same_bits(p.detach(), q.detach()), name
        assert same_bits(p.detach(), optimizer.state_of(name)["master"].bfloat16()), name
        assert same_bits(optimizer.state_of(name)["master"], resumed.state_of(name)["master"]), name
        assert resumed.state_of(name)["step"] == 6
    assert saved["0.weight"]["step"] == 3  # a copy


@pytest.mark.parametrize("update", ["reference", "unfused", "fused"])
def test_optimizers_do_the_same_whatever_implements_the_step(update):
    parameter = torch.nn.Parameter(make_state(7, 9)[4])
    without = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = MixedPrecisionAdamW([("w", parameter), ("unused", without)], AdamWOptions(**OPTIONS), update=update)
    expected = make_state(7, 9)
    expected[0] = expected[4].float()
    for step in (1, 2):
        parameter.grad = expected[1].T.contiguous().T  # not contiguous
        optimizer.step()
        adamw_step_reference(*expected, step=step, **OPTIONS)
    assert same_bits(parameter.detach(), expected[4])
    assert same_bits(optimizer.state_of("w")["exp_avg_sq"], expected[3])
    assert optimizer.state_of("unused")["step"] == 0
    assert (without == 1).all()


def test_optimizer_refuses_what_it_cannot_own():
    half = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float16))
    with pytest.raises(ValueError, match="empty"):
        MixedPrecisionAdamW([])
    with pytest.raises(TypeError, match="pairs"):
        MixedPrecisionAdamW([half])
    with pytest.raises(ValueError, match="w more than once"):
        MixedPrecisionAdamW([("w", half), ("w", half)])
    with pytest.raises(TypeError, match=r"'w' must be torch\.float16 or torch\.bfloat16, got torch\.float32"):
        MixedPrecisionAdamW([("w", torch.nn.Parameter(torch.ones(2)))])
    with pytest.raises(ValueError, match="update must be one of"):
        MixedPrecisionAdamW([("w", half)], update="foreach")
    with pytest.raises(ValueError, match="differ in v, w"):
        MixedPrecisionAdamW([("w", half)], masters={"v": half})
    with pytest.raises(ValueError, match="shape"):
        MixedPrecisionAdamW([("w", half)], masters={"w": torch.ones(3, 2)})
    optimizer = MixedPrecisionAdamW([("w", half)])
    with pytest.raises(ValueError, match="no parameter is called 'v'"):
        optimizer.state_of("v")
    with pytest.raises(ValueError, match="differ in w"):
        optimizer.load_state_dict({})
    state = optimizer.state_dict()["w"]
    with pytest.raises(ValueError, match="must have step"):
        optimizer.load_state_dict({"w": {"step": 1}})
    with pytest.raises(ValueError, match="shape"):
        optimizer.load_state_dict({"w": state | {"exp_avg": torch.zeros(3, 2)}})
