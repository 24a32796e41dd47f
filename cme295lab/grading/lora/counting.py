"""Part 3: how many numbers an adapter of a model has.

Source: the figures are those of E. Hu et al., LoRA, 2021, table 4 (GPT-3: 4.7M with rank 1 on two matrices), and what
the shapes of published models give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome

NAME = "num_lora_parameters"
Shapes = Sequence[tuple[int, int]]
GPT3 = ((12288, 12288),) * 2
LLAMA2 = ((4096, 4096),) * 4 + ((11008, 4096),) * 2 + ((4096, 11008),)
LLAMA31_ATTENTION = ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096))


def properties(*, rank: int = 16, num_layers: int = 32) -> list[Property]:
    """What must hold for `num_lora_parameters(shapes, rank, num_layers)`.

    Args:
        rank: of the larger adapters.
        num_layers: of the models with grouped queries.
    """
    return [
        formula_property("the page's example comes out", [question(((3, 4),), 2, 1)]),
        formula_property("Llama 2, all seven matrices", [question(LLAMA2, rank, 32), question(LLAMA2, 4 * rank, 32)]),
        formula_property("GPT-3, two matrices of each block", [question(GPT3, 1, 96), question(GPT3, 8, 96)]),
        formula_property("Llama 3.1, attention with few keys and values",
                         [question(LLAMA31_ATTENTION, rank, num_layers), question(LLAMA31_ATTENTION[1:2], rank, 1)]),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, NAME)


def question(shapes: Shapes, rank: int, num_layers: int) -> Question:
    """A model, an adapter, and the number."""
    want = num_layers * sum(rank * (rows + columns) for rows, columns in shapes)
    return Question(
        function=NAME, arguments={"shapes": [*shapes], "rank": rank, "num_layers": num_layers}, want=want,
        mistakes=tuple(_mistakes(shapes, rank, num_layers)), unit="parameters",
    )  # fmt: skip


def _mistakes(shapes: Shapes, rank: int, num_layers: int) -> Iterator[tuple[str, float]]:
    """Causes, and the numbers that they give."""
    both = sum(rows + columns for rows, columns in shapes)
    full = sum(rows * columns for rows, columns in shapes)
    yield "the matrices themselves are counted: they are frozen", num_layers * full
    yield "the matrices themselves are counted as well: they are frozen", num_layers * (full + rank * both)
    yield "the rank is missing: A has rank rows, and B has rank columns", num_layers * both
    yield "that is one block: multiply by num_layers", rank * both
    yield "only A is counted", num_layers * rank * sum(columns for _, columns in shapes)
    yield "only B is counted", num_layers * rank * sum(rows for rows, _ in shapes)
    yield "A and B have the same size here: A is (rank, in), B is (out, rank)", (
        2 * num_layers * rank * sum(columns for _, columns in shapes)
    )
    yield "A and B are counted as if both had out_features: A is (rank, in), B is (out, rank)", (
        2 * num_layers * rank * sum(rows for rows, _ in shapes)
    )
    yield "a matrix of rank by rank is counted as well: there is none", (
        num_layers * (rank * both + rank * rank * len(shapes))
    )
    yield "biases are counted as well: they are frozen", num_layers * (rank * both + sum(rows for rows, _ in shapes))
    yield "sizes are multiplied: the sizes of A and B are added", num_layers * rank * full
    yield "only the first matrix is counted", num_layers * rank * sum(shapes[0])
