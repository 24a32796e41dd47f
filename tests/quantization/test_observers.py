"""Statistics of layers against numpy over all values at once, on the course's model and with planted outliers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cme295lab.quantization.observers import observe, tensor_statistics
from cme295lab.transformer import load_pretrained


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(8, 16), nn.Linear(16, 4, bias=False), nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.second(input=self.dropout(self.first(x)))  # by name: that must be seen too


def check_against_numpy(statistics, values):
    values = values.detach().double().numpy().ravel()
    assert statistics.num_values == len(values)
    assert (statistics.min, statistics.max) == (values.min(), values.max())
    assert statistics.absmax == np.abs(values).max()
    assert statistics.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-12)
    assert statistics.std == pytest.approx(values.std(), rel=1e-9)
    fourth = ((values - values.mean()) ** 4).mean() / values.var() ** 2
    assert statistics.kurtosis == pytest.approx(fourth, rel=1e-8)
    for percent, found in statistics.percentiles.items():
        exact = np.percentile(np.abs(values), percent, method="inverted_cdf")
        assert exact <= found <= exact * (1 + 1 / 128)


def test_layers_equal_numpy_over_all_batches():
    model = TwoLayers()
    batches = [torch.randn(rows, 8) * rows + rows for rows in (1, 2, 7, 30)]
    first, second, unused = observe(model, batches, percentiles=(1, 50, 90, 99.9, 100))
    assert [layer.name for layer in (first, second, unused)] == ["first", "second", "unused"]
    assert (first.in_features, first.out_features) == (8, 16)
    everything = torch.cat(batches)
    check_against_numpy(first.weight, model.first.weight)
    check_against_numpy(first.inputs, everything)
    check_against_numpy(second.inputs, torch.cat([model.first(batch) for batch in batches]))  # no dropout
    assert first.column_absmax.tolist() == everything.abs().amax(dim=0).double().tolist()
    assert first.large_share == pytest.approx(float((everything.abs() >= 6).double().mean()))
    check_against_numpy(unused.weight, model.unused.weight)
    assert unused.inputs is None
    assert unused.column_absmax is None
    assert (unused.num_outlier_columns, unused.large_share) == (0, 0.0)


def test_a_planted_outlier_is_found_where_it_is():
    torch.manual_seed(0)
    model = TwoLayers()
    with torch.no_grad():
        model.first.weight[5] *= 100  # the sixth feature that `second` sees
        model.first.weight.mul_(0.5)
        model.second.weight[1, 2] = 9.0
    batches = [torch.randn(64, 8).clamp(-3, 3) for _ in range(3)]
    first, second, _ = observe(model, batches)
    assert first.outlier_columns == ()
    assert second.outlier_columns == (5,)
    assert second.num_outlier_columns == 1
    assert second.outlier_share == 1 / 16
    assert 0 < second.large_share < 1 / 16
    assert second.inputs.kurtosis > 10 > 4 > first.inputs.kurtosis
    assert second.weight.absmax == 9.0
    assert second.weight.absmax > 10 * second.weight.percentiles[50.0]
    (_, higher, _) = observe(model, batches, threshold=1e4)
    assert higher.outlier_columns == ()


def test_the_model_is_left_as_it_was_even_when_a_batch_fails():
    model = TwoLayers().train()
    model.dropout.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    observe(model, [torch.randn(2, 8)])
    with pytest.raises(RuntimeError):
        observe(model, [torch.randn(2, 8), torch.randn(2, 9)])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_courses_model_can_be_observed():
    pretrained = load_pretrained("course-4m")
    text = "The value of an expression is computed from left to right. " * 4
    tokens = torch.tensor([pretrained.tokenizer.encode(text)])
    layers = observe(pretrained.model, [tokens[:, :32], tokens[:, 32:48]])
    linears = {name: module for name, module in pretrained.model.named_modules() if isinstance(module, nn.Linear)}
    assert [layer.name for layer in layers] == list(linears)
    for layer in layers:
        check_against_numpy(layer.weight, linears[layer.name].weight)
        assert layer.inputs.num_values == 48 * layer.in_features
        assert layer.inputs.absmax == pytest.approx(float(layer.column_absmax.max()))
        assert layer.num_outlier_columns == int((layer.column_absmax >= 6).sum())
        assert 2.5 < layer.weight.kurtosis < 100
        assert layer.weight.percentiles[50.0] < layer.weight.percentiles[99.0] <= layer.weight.absmax


def test_moments_do_not_depend_on_how_values_come_and_survive_a_large_mean():
    values = torch.randn(1000, dtype=torch.float64) + 1e4
    layer = nn.Linear(1, 1).double()
    one_by_one = observe(layer, list(values.reshape(100, 10, 1)))[0].inputs
    at_once = tensor_statistics(values)
    assert one_by_one.kurtosis == pytest.approx(at_once.kurtosis, rel=1e-6)
    assert one_by_one.std == pytest.approx(at_once.std, rel=1e-9)
    assert at_once.kurtosis == pytest.approx(3, abs=0.5)
    assert tensor_statistics(torch.rand(100_000)).kurtosis == pytest.approx(1.8, rel=0.01)


def test_odd_tensors_have_defined_statistics():
    constant = tensor_statistics(torch.full((5,), 2.0))
    assert (constant.std, constant.absmax, constant.percentiles[50.0]) == (0.0, 2.0, 2.0)
    assert math.isnan(constant.kurtosis)
    zeros = tensor_statistics(torch.zeros(3))
    assert (zeros.absmax, zeros.percentiles[99.0]) == (0.0, 0.0)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        values = torch.randn(333).to(dtype)
        check_against_numpy(tensor_statistics(values), values)
    largest = torch.finfo(torch.float32).max
    assert tensor_statistics(torch.tensor([largest, -largest])).percentiles[99.0] == largest


def test_bad_input_is_refused():
    model = TwoLayers()
    with pytest.raises(ValueError, match="batches is empty"):
        observe(model, [])
    with pytest.raises(ValueError, match="ReLU has no nn"):
        observe(nn.ReLU(), [torch.randn(2)])
    for threshold in (0, -1.0, math.nan, True):
        with pytest.raises(ValueError, match="threshold must be a positive number"):
            observe(model, [torch.randn(2, 8)], threshold=threshold)
    for percent in (0, 101, -5, True, "50"):
        with pytest.raises(ValueError, match="percentiles must be above 0 and at most 100"):
            observe(model, [torch.randn(2, 8)], percentiles=(percent,))
    bad = torch.randn(2, 8)
    bad[1, 3] = math.nan
    with pytest.raises(ValueError, match=r"the input of first has 1 of 16 values .* nan at \(1, 3\)"):
        observe(model, [bad])
    with torch.no_grad():
        model.unused.weight[0, 0] = math.inf
    with pytest.raises(ValueError, match="the weight of unused has 1 of 9"):
        observe(model, [torch.randn(2, 8)])
    with pytest.raises(ValueError, match="has no values to describe"):
        tensor_statistics(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="x has values beyond float32"):
        tensor_statistics(torch.tensor([1e39, 1.0], dtype=torch.float64))
    with pytest.raises(TypeError, match="x must be one of"):
        tensor_statistics(torch.arange(3))


def test_a_model_can_be_called_in_another_way():
    model = TwoLayers()
    (first, *_) = observe(model, [{"x": torch.ones(2, 8)}], run=lambda model, batch: model(**batch))
    assert first.inputs.mean == 1.0
