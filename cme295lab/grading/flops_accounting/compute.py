"""Part 1: the parameters of a model, exactly, and the FLOP of its training by 6ND."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome
from cme295lab.transformer.config import ModelConfig

_PLAIN = "a model with a head of its own: 6ND"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its training; the names are those of the student's arguments."""

    vocab_size: int
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    tied: bool
    num_tokens: int

    @property
    def config(self) -> ModelConfig:
        """The library's model of that shape."""
        return ModelConfig(
            vocab_size=self.vocab_size, num_layers=self.num_layers, dim=self.dim, num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads, mlp_dim=self.mlp_dim, tied_head=self.tied, max_seq=1,
        )  # fmt: skip

    @property
    def table(self) -> int:
        """Parameters of the embedding."""
        return self.vocab_size * self.dim


def properties(*, dim: int = 48, num_layers: int = 3, billions: int = 2) -> list[Property]:
    """What must hold for `training_flops(vocab_size, ..., num_tokens)`.

    Args:
        dim: of the models, a multiple of 8.
        num_layers: of the models.
        billions: of tokens.
    """
    shared = {"vocab_size": 500, "num_layers": num_layers, "dim": dim, "num_heads": 8, "mlp_dim": 3 * dim - 5,
              "num_tokens": billions * 10**9}  # fmt: skip
    plain = Shape(**shared, num_kv_heads=8, tied=False)
    tied = Shape(**shared, num_kv_heads=8, tied=True)
    grouped = Shape(**shared, num_kv_heads=2, tied=False)
    both = Shape(**{**shared, "vocab_size": 700, "num_heads": 4, "num_tokens": 10**6}, num_kv_heads=1, tied=True)
    return [
        _property(_PLAIN, [plain], weight=2),
        _property("a tied table is one matrix, and counts once", [tied], needs=(_PLAIN,)),
        _property("grouped keys and values are narrower", [grouped], needs=(_PLAIN,)),
        _property("all of it together", [both, plain]),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "training_flops")


def _property(name: str, shapes: Sequence[Shape], *, weight: float = 1, needs: tuple[str, ...] = ()) -> Property:
    return formula_property(name, [question(shape) for shape in shapes], weight=weight, needs=needs)


def question(shape: Shape) -> Question:
    """The call, its answer by the library's count of parameters, and what mistakes give."""
    n = shape.config.num_parameters
    mistakes = [(cause, float(factor * n * shape.num_tokens)) for factor, cause in _FACTORS.items()]
    mistakes += [(cause, 6.0 * wrong * shape.num_tokens) for cause, wrong in _wrong_parameters(shape)]
    mistakes += [
        ("that is the number of parameters: each of them takes 6 FLOP for each token", float(n)),
        ("that is 6N, for one token: multiply by the number of tokens", 6.0 * n),
        ("that is in units of 10^12: return FLOP", 6 * n * shape.num_tokens / 1e12),
        ("that is divided by the seconds of a day: a count of operations has no time in it",
         6 * n * shape.num_tokens / 86_400),
    ]  # fmt: skip
    arguments: Mapping[str, Any] = vars(shape)
    return Question(function="training_flops", arguments=arguments, want=6.0 * n * shape.num_tokens,
                    mistakes=tuple(mistakes), unit="FLOP")  # fmt: skip


_FACTORS = {
    1: "that is ND: a parameter takes 6 FLOP for each token, 2 forward and 4 backward",
    2: "that is 2ND, the forward pass alone: backward makes two products of the same size for each, 4 more",
    3: "that is 3ND: a multiply-add is two FLOP, so it is 2 forward and 4 backward",
    4: "that is 4ND, the backward pass alone: the forward pass has 2 more",
    8: "that is 8ND, training with full recomputation: without it the forward pass runs once",
    12: "that is 12ND: 6 counts multiplications and additions already",
}


def _wrong_parameters(shape: Shape) -> Iterator[tuple[str, int]]:
    """Causes, and the parameters that they count."""
    n, d, layers = shape.config.num_parameters, shape.dim, shape.num_layers
    kv = shape.config.kv_dim
    if shape.tied:
        yield "the tied table is counted twice: the head *is* the embedding, one matrix", n + shape.table
    else:
        yield "the head is missing: it is a matrix of its own here, as large as the embedding", n - shape.table
    tables = shape.table * (1 if shape.tied else 2)
    yield "embedding and head are missing: N here is all parameters", n - tables
    cause = "keys and values are counted as wide as the queries: num_kv_heads of them have a width of dim / num_heads"
    yield cause, n + 2 * layers * d * (d - kv)
    yield "keys or values are missing: each has a matrix", n - layers * d * kv
    yield "queries, keys, values: and the projection of the output has d·d as well", n - layers * d * d
    yield "the MLP has three matrices: gate, up and down", n - layers * d * shape.mlp_dim
    cause = "the MLP is counted as 2 · 4d²: it has three matrices of d by mlp_dim"
    yield cause, n - layers * (3 * d * shape.mlp_dim - 8 * d * d)
    yield "the last norm is missing: a vector of dim after all layers", n - d
    yield "the norms are missing: two vectors of dim in each layer, and one after the last", n - (2 * layers + 1) * d
    yield "a layer has two norms, one before attention and one before the MLP", n - layers * d
    yield "one layer is missing, or there is one layer only: multiply by num_layers", n - (layers - 1) * (
        shape.config.parameters_per_layer
    )
