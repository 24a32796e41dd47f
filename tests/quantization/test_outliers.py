"""LLM.int8 against a float64 oracle in numpy, against bitsandbytes on the CPU, and with a planted outlier."""

import logging
import math
import sys
import warnings

import numpy as np
import pytest
import torch

from cme295lab.quantization.outliers import int8_product, mixed_int8_linear, outlier_columns


def oracle(x, weight, bias, threshold, half):
    """The paper's equations with numpy, a row and an output at a time; only roundings that the method has."""
    x, weight = x.double().numpy(), weight.double().numpy()
    normal = [column for column in range(x.shape[1]) if np.abs(x[:, column]).max() < threshold]
    large = [column for column in range(x.shape[1]) if column not in normal]
    result = np.zeros((len(x), len(weight)))
    for i, row in enumerate(x):
        for j, out in enumerate(weight):
            row_max = np.abs(row[normal]).max(initial=0) or 1.0
            out_max = np.abs(out).max() or 1.0
            row_codes = np.rint(row[normal] * 127 / row_max).astype(np.int64)
            out_codes = np.rint(out[normal] * 127 / out_max).astype(np.int64)
            result[i, j] = (row_codes * out_codes).sum() * row_max * out_max / 127**2
            for column in large:
                result[i, j] += float(half(row[column])) * float(half(out[column]))
    return torch.tensor(result + (0 if bias is None else bias.double().numpy()))


def planted(seed, rows, features, outputs, columns, size=20.0):
    """Inputs of which some columns are `size` times as large as the rest, and a weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator).clamp(-4, 4)
    x[:, columns] *= size
    return x, torch.randn(outputs, features, generator=generator) / math.sqrt(features)


@pytest.mark.parametrize(
    ("rows", "features", "outputs", "columns"),
    [(5, 64, 7, [3]), (1, 33, 1, []), (3, 17, 5, [0, 16]), (4, 6, 3, [0, 1, 2, 3, 4, 5]), (9, 1, 2, [])],
)
def test_mixed_linear_equals_the_oracle(rows, features, outputs, columns):
    x, weight = planted(rows, rows, features, outputs, columns, size=1000.0)
    for bias in (None, torch.randn(outputs)):
        expected = oracle(x, weight, bias, 6.0, np.float16)
        got = mixed_int8_linear(x, weight, bias)
        assert outlier_columns(x).tolist() == columns
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_linear_of_16_bits_rounds_once_at_the_end(dtype):
    x, weight = (t.to(dtype) for t in planted(0, 5, 64, 7, [3, 9]))
    expected = oracle(x, weight, None, 6.0, float)  # 16-bit operands already: nothing more to round
    got = mixed_int8_linear(x, weight)
    assert got.dtype == dtype
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * 1e-2)


def test_one_outlier_column_ruins_the_rest_unless_it_is_taken_out():
    x, weight = planted(1, 64, 256, 32, [100])
    exact = x @ weight.T
    without = (mixed_int8_linear(x, weight, threshold=math.inf) - exact).square().mean().sqrt()
    decomposed = (mixed_int8_linear(x, weight) - exact).square().mean().sqrt()
    plain_x = x.clone()
    plain_x[:, 100] /= 20
    undisturbed = (mixed_int8_linear(plain_x, weight) - plain_x @ weight.T).square().mean().sqrt()
    assert without > 3 * undisturbed
    assert decomposed < 1.1 * undisturbed


def test_the_rest_keeps_its_codes_when_the_outlier_is_taken_out():
    x, weight = planted(2, 8, 64, 5, [10])
    weight[:, 10] = 0  # the outlier itself contributes nothing; what is left is what it does to its neighbours
    quiet = x.clone()
    quiet[:, 10] = 0
    assert torch.equal(mixed_int8_linear(x, weight), mixed_int8_linear(quiet, weight))
    assert not torch.equal(mixed_int8_linear(x, weight, threshold=math.inf), mixed_int8_linear(quiet, weight))


@pytest.fixture(scope="module")
def bitsandbytes():
    """The library, without the line it logs where it finds another package of the name `kernels` than it wants."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes
    finally:
        logging.disable(logging.NOTSET)
    assert "bitsandbytes" in sys.modules
    return bitsandbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "features", "outputs"), [(5, 64, 7), (16, 200, 33)])
def test_mixed_linear_equals_bitsandbytes_on_the_cpu(bitsandbytes, dtype, rows, features, outputs):
    x, _ = planted(rows, rows, features, outputs, [])
    x[:, [3, 17]] = torch.where(x[:, [3, 17]] > 0, 20.0, -30.0)  # a 5 there would count in their scales
    x = x.to(dtype)
    codes = torch.randint(-127, 128, (outputs, features))
    codes[:, 0] = 127
    weight = codes * 2.0**-9  # on an int8 grid: their outlier weights, read from the codes, are then ours in 16 bits
    bias = torch.randn(outputs)
    functional, operators = bitsandbytes.functional, torch.ops.bitsandbytes
    x_codes, x_scales, columns = functional.int8_vectorwise_quant(x, threshold=6.0)
    weight_codes, weight_scales, _ = functional.int8_vectorwise_quant(weight)
    theirs, _ = operators.int8_mixed_scaled_mm(
        x, x_codes, weight_codes, x_scales, weight_scales, columns, bias.to(dtype)
    )
    assert columns.tolist() == outlier_columns(x).tolist() == [3, 17]
    got = mixed_int8_linear(x, weight, bias.to(dtype))
    assert theirs.dtype == got.dtype == dtype
    # they round to 16 bits after the integers, and once more after the outliers
    largest = float(theirs.abs().max()) * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), theirs.double(), rtol=0, atol=1.5 * largest)


def test_sums_of_codes_are_exact_integers():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (3, 5000), generator=generator, dtype=torch.int8)
    b = torch.randint(-127, 128, (4, 5000), generator=generator, dtype=torch.int8)
    expected = [[sum(p * q for p, q in zip(row, out, strict=True)) for out in b.tolist()] for row in a.tolist()]
    got = int8_product(a, b)
    assert got.dtype == torch.int32
    assert got.tolist() == expected
    full = torch.full((1, 133_144), 127, dtype=torch.int8)
    assert int8_product(full, full).item() == 133_144 * 127**2  # not a float32: it has 24 bits


def test_outlier_columns_worked_by_hand():
    x = torch.tensor([[[0.5, -6.0, 1.0, 5.99]], [[0.1, 0.2, 6.5, 0.0]]])
    assert outlier_columns(x).tolist() == [1, 2]
    assert outlier_columns(x, threshold=6.25).tolist() == [2]
    assert outlier_columns(x, threshold=0.5).tolist() == [0, 1, 2, 3]
    assert outlier_columns(x, threshold=math.inf).tolist() == []
    assert outlier_columns(torch.zeros(0, 4)).tolist() == []
    assert outlier_columns(torch.zeros(3, 0)).tolist() == []


def test_batches_are_rows_and_empty_ones_stay_empty():
    x, weight = planted(3, 12, 16, 5, [2])
    flat = mixed_int8_linear(x, weight)
    assert torch.equal(mixed_int8_linear(x.reshape(2, 3, 2, 16), weight), flat.reshape(2, 3, 2, 5))
    one = mixed_int8_linear(x[:1], weight, threshold=1e9)
    assert torch.equal(mixed_int8_linear(x[0], weight, threshold=math.inf), one[0])
    assert mixed_int8_linear(x[:0], weight).shape == (0, 5)
    bias = torch.randn(5)
    assert torch.equal(mixed_int8_linear(torch.zeros(2, 16), weight, bias), bias.expand(2, 5))
    assert torch.equal(mixed_int8_linear(torch.zeros(2, 0), torch.zeros(5, 0), bias), bias.expand(2, 5))


def test_bad_input_is_refused():
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    for threshold in (0.0, -6.0, math.nan, True, "6"):
        with pytest.raises(ValueError, match="threshold must be a positive number"):
            mixed_int8_linear(x, weight, threshold=threshold)
    for bad_x, bad_weight in [(x, weight.T), (x, weight[0]), (torch.tensor(1.0), weight)]:
        with pytest.raises(ValueError, match=r"x must be \(..., features\) and weight"):
            mixed_int8_linear(bad_x, bad_weight)
    with pytest.raises(ValueError, match=r"bias must have the shape \(5,\), got \(8,\)"):
        mixed_int8_linear(x, weight, torch.zeros(8))
    with pytest.raises(TypeError, match="weight must be one of"):
        mixed_int8_linear(x, torch.zeros(5, 8, dtype=torch.int8))
    for name, position in (("x", 0), ("weight", 1), ("bias", 2)):
        arguments = [x.clone(), weight.clone(), torch.zeros(5)]
        arguments[position].view(-1)[4] = math.nan
        with pytest.raises(ValueError, match=f"{name} has 1 of"):
            mixed_int8_linear(*arguments)
    x[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"x has an outlier of 1e\+06, more than torch.float16 holds \(65504\)"):
        mixed_int8_linear(x, weight)
    assert torch.isfinite(mixed_int8_linear(x.bfloat16(), weight)).all()
    with pytest.raises(TypeError, match="x_codes must be int8"):
        int8_product(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match="x_codes has 2 features, weight_codes 3"):
        int8_product(torch.zeros(1, 2, dtype=torch.int8), torch.zeros(1, 3, dtype=torch.int8))
    too_many = torch.zeros(1, 133_145, dtype=torch.int8)
    with pytest.raises(ValueError, match="an int32 holds 133144 products"):
        int8_product(too_many, too_many)
    with pytest.raises(ValueError, match="x must have features"):
        outlier_columns(torch.tensor(1.0))
