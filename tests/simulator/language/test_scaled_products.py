"""dot_scaled against numbers decoded one by one, by the definition of the formats."""

import math

import pytest
import torch

from cme295lab.simulator.errors import KernelTypeError

M, N, K = 16, 8, 64


def fp4(code):
    """Sign, two exponent bits (bias 1), one mantissa bit."""
    sign, exponent, mantissa = (-1) ** (code >> 3), (code >> 1) & 3, code & 1
    return sign * (mantissa * 0.5 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2))


def unpacked(packed, axis):
    """Two numbers from every byte, along an axis."""
    values = torch.tensor([[fp4(b & 15), fp4(b >> 4)] for b in packed.reshape(-1).tolist()]).reshape(*packed.shape, 2)
    if axis == 1:
        return values.reshape(packed.shape[0], -1)
    return values.permute(0, 2, 1).reshape(-1, packed.shape[1])


def scales(rows, group=32):
    return torch.randint(120, 134, (rows, K // group), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def scaled(values, scale):
    return values * torch.exp2(scale.double() - 127).repeat_interleave(values.shape[1] // scale.shape[1], dim=1)


def random_bytes(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.uint8)


def finite(dtype, *shape):
    x = random_bytes(*shape).view(dtype).float()
    return torch.nan_to_num(x, nan=1.0, posinf=2.0, neginf=-2.0).to(dtype)


def test_fp4_operands_with_scales(evaluate):
    a, b, sa, sb = random_bytes(M, K // 2), random_bytes(K // 2, N), scales(M), scales(N)
    found = evaluate("tl.dot_scaled(a, sa, 'e2m1', b, sb, 'e2m1')", a=a, b=b, sa=sa, sb=sb)
    want = scaled(unpacked(a, 1).double(), sa) @ scaled(unpacked(b, 0).T.double(), sb).T
    torch.testing.assert_close(found, want.float(), rtol=1e-5, atol=1e-4)


def test_fp4_packed_along_the_other_axes(evaluate):
    a, b = random_bytes(M // 2, K), random_bytes(K, N // 2)
    found = evaluate("tl.dot_scaled(a, None, 'e2m1', b, None, 'e2m1', lhs_k_pack=False, rhs_k_pack=False)", a=a, b=b)
    torch.testing.assert_close(found, unpacked(a, 0).float() @ unpacked(b, 1).float())


@pytest.mark.parametrize(("kind", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
@pytest.mark.parametrize("as_bits", [False, True])
def test_fp8_with_bf16_and_an_accumulator(evaluate, kind, dtype, as_bits):
    a, sa = finite(dtype, M, K), scales(M)
    b, acc = torch.randn(K, N).bfloat16(), torch.randn(M, N)
    given = a.view(torch.uint8) if as_bits else a
    found = evaluate(f"tl.dot_scaled(a, sa, '{kind}', b, None, 'bf16', acc)", a=given, b=b, sa=sa, acc=acc)
    want = scaled(a.double(), sa) @ b.double() + acc.double()
    torch.testing.assert_close(found, want.float(), rtol=1e-4, atol=want.abs().max().item() * 1e-5)


def test_every_program_has_its_own_and_255_is_no_number(evaluate):
    a, b, sa = finite(torch.float8_e5m2, 2 * M, K), finite(torch.float8_e5m2, 2 * K, N), scales(2 * M)
    sa[3, 1] = 255
    found = evaluate("tl.dot_scaled(a, sa, 'e5m2', b, None, 'e5m2')", a=a, b=b, sa=sa, programs=2)
    sa[3, 1] = 127
    want = torch.cat(
        [scaled(a.double(), sa)[p * M : p * M + M] @ b.double()[p * K : p * K + K] for p in range(2)]
    ).float()
    assert torch.isnan(found[3]).all()
    keep = torch.arange(2 * M) != 3
    torch.testing.assert_close(found[keep], want[keep], rtol=1e-4, atol=want[keep].abs().max().item() * 1e-5)


def test_nvfp4_has_fp8_scales_for_groups_of_16(evaluate):
    a, sa = random_bytes(M, K // 2), torch.rand(M, K // 16).to(torch.float8_e4m3fn)
    b = torch.randn(K, N).half()
    found = evaluate("tl.dot_scaled(a, sa, 'e2m1', b, None, 'fp16')", a=a, sa=sa, b=b)
    want = (unpacked(a, 1).double() * sa.double().repeat_interleave(16, dim=1)) @ b.double()
    torch.testing.assert_close(found, want.float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a, None, 'e2m1', b, None, 'bf16'", "e2m1 numbers come in pairs in uint8, lhs is bf16"),
        ("a, None, 'int8', b, None, 'bf16'", "the format must be e2m1"),
        ("a, None, 'fp16', b, None, 'bf16'", "fp16 numbers are fp16 or uint16, lhs is bf16"),
        ("a, None, 'bf16', a, None, 'bf16'", "K is 64 in lhs and 16 in rhs"),
        ("a, a, 'bf16', b, None, 'bf16'", r"lhs_scale must be uint8 \(e8m0\) or fp8e4nv"),
        ("a, b.to(tl.uint8), 'bf16', b, None, 'bf16'", r"lhs_scale must have shape \[16, 64 / group\]"),
        ("a, None, 'bf16', b, None, 'bf16', lhs_k_pack=False", "only e2m1 numbers can be packed"),
        ("a, None, 'bf16', b, None, 'bf16', a", "the accumulator must be fp32"),
        ("a, None, 'bf16', b, None, 'bf16', out_dtype=tl.float16", "the result is fp32"),
        ("1, None, 'bf16', b, None, 'bf16'", "lhs must be a block"),
    ],
)
def test_wrong_arguments_are_named(evaluate, arguments, message):
    with pytest.raises(KernelTypeError, match=message):
        evaluate(f"tl.dot_scaled({arguments})", a=torch.ones(M, K).bfloat16(), b=torch.ones(K, N).bfloat16())


def test_the_codes_of_fp4_are_those_of_the_specification():
    assert [fp4(c) for c in range(8)] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert math.copysign(1, fp4(8)) == -1
