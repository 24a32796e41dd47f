"""How Chinchilla counts: parameters of Table A9, FLOPs of Table A4."""

import pytest

from cme295lab.scaling.appendix import CHINCHILLA_SHAPE, GOPHER_SHAPE, TABLE_A9, ChinchillaShape, flops_ratio


@pytest.mark.parametrize("millions", TABLE_A9)
def test_parameters_are_the_printed_ones(millions: int) -> None:
    shape = TABLE_A9[millions]
    tolerance = 0.0012 if millions >= 587 else 0.009
    assert shape.num_parameters / 1e6 == pytest.approx(millions, rel=tolerance)
    four_matrices = shape.num_parameters - shape.num_layers * shape.dim * shape.query_dim
    assert 1 - four_matrices / shape.num_parameters > 0.04  # relative positions need a fifth matrix


def test_parameters_of_chinchilla_and_gopher() -> None:
    assert CHINCHILLA_SHAPE.num_parameters / 1e9 == pytest.approx(70.06, abs=0.005)
    assert GOPHER_SHAPE.num_parameters / 1e9 == pytest.approx(279.7, abs=0.05)


def shape(dim: int, head_dim: int, num_heads: int, num_layers: int) -> ChinchillaShape:
    return ChinchillaShape(
        dim=dim, num_layers=num_layers, num_heads=num_heads, head_dim=head_dim, mlp_dim=4 * dim
    )


TABLE_A4 = {  # shape, printed ratio, and what the count of Appendix F gives
    "73M": (shape(640, 64, 10, 10), 1.03, 1.58),
    "305M": (TABLE_A9[306], 1.10, 1.31),
    "552M": (shape(1280, 128, 10, 24), 1.08, 1.23),
    "1.1B": (TABLE_A9[1_143], 1.04, 1.14),
    "1.6B": (shape(2048, 128, 16, 28), 1.03, 1.12),
    "6.8B": (TABLE_A9[6_796], 0.99, 1.03),
}


@pytest.mark.parametrize("name", TABLE_A4)
def test_flops_of_table_a4_come_out_without_embedding_and_logits(name: str) -> None:
    model, printed, described = TABLE_A4[name]
    assert flops_ratio(model) == pytest.approx(printed, abs=0.01)
    assert flops_ratio(model, embedding_and_logits=True) == pytest.approx(described, abs=0.01)
    assert abs(described - printed) > 0.03
