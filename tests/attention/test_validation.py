"""Bad input: each a clear error or the documented result, for every implementation."""

import math

import pytest
import torch

from cme295lab import simulator
from cme295lab.attention import flash_attention, standard_attention, standard_attention_kernels, tiled_attention
from tests.attention.oracle import make_inputs

PLAIN = [standard_attention, tiled_attention]
KERNELS = [flash_attention, standard_attention_kernels]


def call(attention, *x, **options):
    with simulator.enabled():
        return attention(*x, **options)


def shaped(*shapes, dtype=torch.float32):
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


BAD = {
    "rank": (
        shaped((2, 8, 16), (1, 2, 8, 16), (1, 2, 8, 16)),
        {},
        "q must have 4 dimensions .* got shape \\(2, 8, 16\\)",
    ),
    "head dims": (shaped((1, 2, 8, 16), (1, 2, 8, 32), (1, 2, 8, 32)), {}, "same head dim, got 16 and 32"),
    "k and v": (shaped((1, 2, 8, 16), (1, 2, 8, 16), (1, 2, 9, 16)), {}, "k and v must have the same shape"),
    "batch": (shaped((2, 2, 8, 16), (1, 2, 8, 16), (1, 2, 8, 16)), {}, "same batch size, got 2 and 1"),
    "heads": (shaped((1, 3, 8, 16), (1, 2, 8, 16), (1, 2, 8, 16)), {}, "multiple of .* got 3 and 2"),
    "no queries": (shaped((1, 2, 0, 16), (1, 2, 8, 16), (1, 2, 8, 16)), {}, "q must not be empty"),
    "no keys": (shaped((1, 2, 8, 16), (1, 2, 0, 16), (1, 2, 0, 16)), {}, "k must not be empty"),
    "no batch": (shaped((0, 2, 8, 16), (0, 2, 8, 16), (0, 2, 8, 16)), {}, "q must not be empty"),
    "zero scale": (shaped(*[(1, 2, 8, 16)] * 3), {"scale": 0.0}, "scale must be a positive finite number, got 0.0"),
    "negative scale": (shaped(*[(1, 2, 8, 16)] * 3), {"scale": -1.0}, "positive finite"),
    "infinite scale": (shaped(*[(1, 2, 8, 16)] * 3), {"scale": math.inf}, "positive finite"),
    "nan scale": (shaped(*[(1, 2, 8, 16)] * 3), {"scale": math.nan}, "positive finite"),
    "dtypes": (
        [*shaped((1, 2, 8, 16), (1, 2, 8, 16)), *shaped((1, 2, 8, 16), dtype=torch.float16)],
        {},
        "one dtype, got q .*float32 and v .*16",
    ),
    "devices": (
        [torch.zeros(1, 2, 8, 16), *[torch.zeros(1, 2, 8, 16, device="meta")] * 2],
        {},
        "one device, got q on cpu and k on meta",
    ),
}


@pytest.mark.parametrize("attention", PLAIN + KERNELS)
@pytest.mark.parametrize("name", BAD)
def test_attention_refuses_arguments_that_do_not_fit_together(attention, name):
    x, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(attention, *x, **options)


@pytest.mark.parametrize("attention", PLAIN + KERNELS)
def test_attention_refuses_what_is_no_floating_point_tensor(attention):
    q, k, v, _ = make_inputs()
    with pytest.raises(TypeError, match=r"k must be floating point, got torch.int64"):
        call(attention, q, k.long(), v)
    with pytest.raises(TypeError, match=r"v must be a torch.Tensor, got list"):
        call(attention, q, k, v.tolist())


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("dim", [1, 8, 15, 129, 256])
def test_kernels_refuse_a_head_dim_out_of_range(attention, dim):
    with pytest.raises(ValueError, match=f"head dims from 16 to 128, got {dim}; use backend='tiled'"):
        call(attention, *shaped(*[(1, 1, 8, dim)] * 3))


@pytest.mark.parametrize("attention", KERNELS)
def test_kernels_refuse_float64(attention):
    with pytest.raises(ValueError, match=r"fp16, bf16 and fp32, got torch.float64"):
        call(attention, *shaped(*[(1, 1, 8, 16)] * 3, dtype=torch.float64))


@pytest.mark.parametrize("attention", KERNELS)
def test_kernels_refuse_cpu_tensors_outside_the_simulator(attention):
    with pytest.raises(ValueError, match=r"q, k and v are on cpu, .* cme295lab.simulator.enabled"):
        attention(*shaped(*[(1, 1, 8, 16)] * 3))


@pytest.mark.parametrize("attention", KERNELS)
def test_kernels_refuse_other_devices(attention):
    with pytest.raises(ValueError, match="are on meta"):
        call(attention, *[torch.zeros(1, 1, 8, 16, device="meta")] * 3)


def test_flash_refuses_an_unknown_backend():
    with pytest.raises(ValueError, match=r"backend must be .* got 'cuda'"):
        flash_attention(*shaped(*[(1, 1, 8, 16)] * 3), backend="cuda")


@pytest.mark.parametrize("attention", [flash_attention, tiled_attention])
@pytest.mark.parametrize("name", ["block_m", "block_n"])
@pytest.mark.parametrize("value", [-16, 0, 8, 48])
def test_block_sizes_must_be_powers_of_two_from_16(attention, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a power of two and at least 16, got {value}"):
        call(attention, *shaped(*[(1, 1, 8, 16)] * 3), **{name: value})


@pytest.mark.parametrize("attention", PLAIN + KERNELS)
def test_nan_in_a_query_stays_in_its_row(attention):
    q, k, v, _ = make_inputs(heads=1, len_q=70)
    q[0, 0, 5, 3] = math.nan
    o = call(attention, q, k, v, causal=True)
    assert o[0, 0, 5].isnan().all()
    assert o.isfinite().all(dim=-1).sum() == 69


@pytest.mark.parametrize("attention", PLAIN + KERNELS)
def test_nan_in_a_key_reaches_every_row_that_sees_it_and_no_other(attention):
    q, k, v, _ = make_inputs(heads=1, len_q=70)
    k[0, 0, 40, 3] = math.nan
    o = call(attention, q, k, v, causal=True)
    assert o[0, 0, 40:].isnan().all()
    assert o[0, 0, :40].isfinite().all()


@pytest.mark.parametrize("attention", PLAIN + KERNELS)
def test_nan_in_a_value_reaches_every_row_that_sees_it(attention):
    q, k, v, _ = make_inputs(heads=1, len_q=70)
    v[0, 0, 40, 3] = math.nan
    o = call(attention, q, k, v, causal=True)
    assert o[0, 0, 40:, 3].isnan().all()
    assert o[..., :3].isfinite().all()  # other columns of V do not mix


@pytest.mark.parametrize("attention", PLAIN + KERNELS)
def test_nan_propagates_to_gradients(attention):
    q, k, v, do = make_inputs(heads=1, len_q=70)
    q[0, 0, 5, 3] = math.nan
    k.requires_grad_()
    call(attention, q, k, v).backward(do)
    assert k.grad.isnan().all()
