"""How Hoffmann et al. count: parameters of their models, and FLOPs against 6 N D.

Parameters, with a vocabulary of 32,000 and relative positions as in Transformer-XL, whose projection is the fifth
matrix of attention besides Q, K, V and the output:

    N = 32000 d + L (5 d k H + 2 d f)        d width, L layers, H heads of k, f width of the MLP

That gives the printed millions of Table A9 within a per cent; with four matrices it is 5 to 8 per cent low.

FLOPs, Table A4: the paper's Appendix F describes a count with embedding and logits, and prints ratios to 6 N D of 0.99
to 1.10. The described count does not give these ratios: it gives 1.03 to 1.58. Without the embedding and without the
logits, but with N as above, it gives them all, to the second decimal. Both are here (`flops_ratio`).

Source: Hoffmann et al. 2022, Tables 1, A4 and A9 and Appendix F.
"""

from __future__ import annotations

from dataclasses import dataclass

VOCAB_SIZE = 32_000
SEQ = 2048
_BACKWARD = 3  # forward once, backward twice as much


@dataclass(frozen=True, kw_only=True)
class ChinchillaShape:
    """The shape of one of their models.

    Args:
        dim: width d.
        num_layers, num_heads, head_dim: L, H, k.
        mlp_dim: f, 4 d in all of them.
    """

    dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    mlp_dim: int

    @property
    def query_dim(self) -> int:
        """Width of all queries of a token: k H."""
        return self.num_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """32000 d + L (5 d k H + 2 d f): matrices alone."""
        layer = 5 * self.dim * self.query_dim + 2 * self.dim * self.mlp_dim
        return VOCAB_SIZE * self.dim + self.num_layers * layer


def _shape(dim: int, head_dim: int, num_heads: int, num_layers: int) -> ChinchillaShape:
    return ChinchillaShape(
        dim=dim, num_layers=num_layers, num_heads=num_heads, head_dim=head_dim, mlp_dim=4 * dim
    )


TABLE_A9 = {
    44: _shape(512, 64, 8, 8),
    306: _shape(1024, 64, 16, 20),
    1_143: _shape(1792, 128, 14, 26),
    2_980: _shape(2560, 128, 20, 34),
    6_796: _shape(3584, 128, 28, 40),
    16_183: _shape(5120, 128, 40, 47),
}
"""Some of the 50 rows: millions of parameters as printed, and the shape."""

CHINCHILLA_SHAPE = _shape(8192, 128, 64, 80)
GOPHER_SHAPE = _shape(16384, 128, 128, 80)


def forward_flops_per_sequence(shape: ChinchillaShape, *, embedding_and_logits: bool) -> float:
    """FLOP of a forward pass over one sequence of 2,048 tokens.

    Args:
        shape: of the model.
        embedding_and_logits: whether the embedding is counted as a product, and the logits, as Appendix F describes.
    """
    seq, dim, query = SEQ, shape.dim, shape.query_dim
    projections = 2 * 3 * seq * dim * query
    scores = 2 * seq * seq * query
    softmax = 3 * shape.num_heads * seq * seq
    weighted = 2 * seq * seq * query
    out = 2 * seq * query * dim
    mlp = 2 * seq * (dim * shape.mlp_dim + shape.mlp_dim * dim)
    layers = shape.num_layers * (projections + scores + softmax + weighted + out + mlp)
    ends = 2 * (2 * seq * VOCAB_SIZE * dim) if embedding_and_logits else 0
    return float(layers + ends)


def flops_ratio(shape: ChinchillaShape, *, embedding_and_logits: bool = False) -> float:
    """Training FLOP counted matrix by matrix, over 6 N D."""
    counted = _BACKWARD * forward_flops_per_sequence(shape, embedding_and_logits=embedding_and_logits)
    return counted / (6 * shape.num_parameters * SEQ)
