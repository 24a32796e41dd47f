"""Part 2: bytes of a run with QLoRA and of full fine-tuning, counted from the shapes of the matrices.

Source: T. Dettmers et al., QLoRA, 2023, sections 1 and 3: 780 GB for 65B in full, 12 bytes a parameter; 4.127 bits for
a weight of the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.result import Outcome
from cme295lab.grading.steps import refuse_functions

FUNCTIONS = ("full_bytes", "qlora_bytes")
Shapes = list[tuple[int, int]]


def of_llama(dim: int, hidden: int, kv_dim: int | None = None) -> Shapes:
    """The seven matrices of a layer of a Llama, (out, in)."""
    kv = dim if kv_dim is None else kv_dim
    return [(dim, dim), (kv, dim), (kv, dim), (dim, dim), (hidden, dim), (hidden, dim), (dim, hidden)]


def llama(num_layers: int, matrices: Shapes, vocab_size: int) -> dict[str, Any]:
    """The arguments that describe a Llama with an output matrix of its own."""
    dim = matrices[0][1]
    num_other = 2 * vocab_size * dim + (2 * num_layers + 1) * dim
    return {"num_layers": num_layers, "matrices": matrices, "num_other": num_other}


LLAMA_7B = llama(32, of_llama(4096, 11008), 32000)
LLAMA_65B = llama(80, of_llama(8192, 22016), 32000)
LLAMA_3_8B = llama(32, of_llama(4096, 14336, 1024), 128256)
TINY: dict[str, Any] = {"num_layers": 3, "matrices": [(384, 128), (64, 256)], "num_other": 5000}


def properties(*, rank: int = 64, block_size: int = 64, group_size: int = 256) -> list[Property]:
    """What must hold for `full_bytes` and `qlora_bytes`.

    Args:
        rank: of the adapters on Llama-2 7B.
        block_size: weights that share a constant.
        group_size: constants that share a scale.
    """
    full = "full fine-tuning: 12 bytes for every parameter"
    tiny = "a tiny model in 4 bits, with adapters"
    return [
        formula_property(full, [_full(TINY), _full(LLAMA_7B), _full(LLAMA_65B)]),
        formula_property(tiny, [_qlora(TINY, 3, 64, 256), _qlora(TINY, 5, 64, 128)], weight=2),
        formula_property("Llama-2 7B in 4 bits", [_qlora(LLAMA_7B, rank, block_size, group_size)]),
        formula_property("with grouped queries, matrices are not square",
                         [_qlora(LLAMA_3_8B, 16, block_size, group_size)]),
        formula_property("other blocks and groups", [_qlora(TINY, 3, 32, 64)], needs=(tiny,)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def _full(model: dict[str, Any]) -> Question:
    base, other = _in_layers(model), model["num_other"]
    one = base // model["num_layers"]
    numbers = base + other
    mistakes = (
        ("there are 16 bytes here: weights and gradients have 2 bytes each, and there are no float32 masters",
         16 * numbers),
        ("Adam has two states, of 4 bytes each", 8 * numbers),
        ("a part is missing: weights have 2 bytes, and so have gradients", 10 * numbers),
        ("Adam's states are missing: two of 4 bytes each", 4 * numbers),
        ("num_other is missing: full fine-tuning trains all parameters", 12 * base),
        ("the matrices of one layer are counted: there are num_layers", 12 * (one + other)),
        ("that is a count of parameters", numbers),
        ("these are bits: a byte has 8", 96 * numbers),
    )  # fmt: skip
    return Question(
        function="full_bytes", arguments=model, want=12 * numbers, mistakes=mistakes, unit="bytes", position=0
    )


def _in_layers(model: dict[str, Any]) -> int:
    return int(model["num_layers"] * sum(rows * columns for rows, columns in model["matrices"]))


def qlora_bytes(
    model: dict[str, Any], rank: int, bits: float, *, other: float = 2, adapter: float = 16, num_adapter: float = 0
) -> float:
    """The bytes of a run.

    Args:
        model: its shapes.
        rank: of the adapters.
        bits: of a weight in 4 bits, constants included.
        other: bytes of each other parameter.
        adapter: bytes of each parameter of an adapter: weight, gradient and two states in float32.
        num_adapter: their number, if it is not the right one.
    """
    count = num_adapter or model["num_layers"] * rank * sum(rows + columns for rows, columns in model["matrices"])
    return _in_layers(model) * bits / 8 + other * model["num_other"] + adapter * count


def _qlora(model: dict[str, Any], rank: int, block_size: int, group_size: int) -> Question:
    bits = 4 + 8 / block_size + 32 / (block_size * group_size)
    arguments = {**model, "rank": rank, "block_size": block_size, "group_size": group_size}
    return Question(
        function="qlora_bytes", arguments=arguments, want=qlora_bytes(model, rank, bits),
        mistakes=tuple(wrong_bytes(model, rank, block_size, group_size)), unit="bytes", position=1,
    )  # fmt: skip


def wrong_bytes(model: dict[str, Any], rank: int, block: int, group: int) -> Iterator[tuple[str, float]]:
    """Causes, and the bytes that they give."""
    first, second = 8 / block, 32 / (block * group)
    bits = 4 + first + second
    base, layers, matrices = _in_layers(model), model["num_layers"], model["matrices"]
    right = qlora_bytes(model, rank, bits)

    def counted(number: float) -> float:
        return qlora_bytes(model, rank, bits, num_adapter=number)

    yield "the constants are forgotten: 4 bits are the codes alone", qlora_bytes(model, rank, 4)
    yield "the constants are counted as float32: with double quantisation they have 8 bits and a share of a scale", (
        qlora_bytes(model, rank, 4 + 32 / block)
    )
    yield "the scales of the groups are forgotten: 32 bits, shared by block_size * group_size weights", (
        qlora_bytes(model, rank, 4 + first)
    )
    yield "the codes of the constants are forgotten: 8 bits, shared by a block", qlora_bytes(model, rank, 4 + second)
    yield "a scale is shared by a group of blocks, not of weights", qlora_bytes(model, rank, 4 + first + 32 / group)
    yield "4.127 is rounded, and holds for blocks of 64 and groups of 256: count the bits from both sizes", (
        qlora_bytes(model, rank, 4.127)
    )
    yield "that is the number of blocks of 64 and groups of 256: use both sizes", (
        qlora_bytes(model, rank, 4 + 8 / 64 + 32 / (64 * 256))
    )
    yield "the base is counted in bits: a byte has 8", qlora_bytes(model, rank, 8 * bits)
    yield "the base is counted with 16 bits: its matrices have 4, and their share of constants", (
        qlora_bytes(model, rank, 16)
    )
    yield "num_other is counted in 4 bits: only the matrices of the layers are", (
        qlora_bytes(model, rank, bits, other=bits / 8)
    )
    yield "num_other is missing: embeddings and norms stay in 16 bits", qlora_bytes(model, rank, bits, other=0)
    yield "num_other is counted with 4 bytes: it is 16-bit", qlora_bytes(model, rank, bits, other=4)
    yield "num_other is trained here: it is frozen, and has neither gradient nor states", (
        qlora_bytes(model, rank, bits, other=12)
    )
    for bytes_each, cause in _ADAPTERS:
        yield cause, qlora_bytes(model, rank, bits, adapter=bytes_each)
    yield "Adam's states are counted for the frozen base: only adapters have them", right + 8 * base
    yield "Adam's states are counted for frozen parameters: only adapters have them", (
        right + 8 * (base + model["num_other"])
    )
    yield "gradients are counted for the frozen base: only adapters have them", right + 2 * base
    yield "gradients and states are counted for the frozen base: only adapters have them", right + 10 * base
    yield "only A is counted: an adapter has two matrices, (rank, in) and (out, rank)", (
        counted(layers * rank * sum(columns for _, columns in matrices))
    )
    yield "only B is counted: an adapter has two matrices, (rank, in) and (out, rank)", (
        counted(layers * rank * sum(rows for rows, _ in matrices))
    )
    yield "the matrices are taken for square: an adapter has rank * (in + out) parameters", (
        counted(2 * layers * rank * sum(columns for _, columns in matrices))
    )
    yield "the matrices are taken for square: an adapter has rank * (in + out) parameters", (
        counted(2 * layers * rank * sum(rows for rows, _ in matrices))
    )
    yield "the adapters of one layer are counted: there are num_layers", (
        counted(rank * sum(rows + columns for rows, columns in matrices))
    )
    yield "the rank is forgotten: an adapter has rank * (in + out) parameters", (
        counted(layers * sum(rows + columns for rows, columns in matrices))
    )
    yield "the base of one layer is counted: there are num_layers", right - base * (1 - 1 / layers) * bits / 8


_ADAPTERS = (
    (4.0, "the adapters have weights alone here: add their gradients and Adam's states"),
    (8.0, "Adam's states of the adapters are missing: two of 4 bytes for each parameter"),
    (12.0, "a part of the adapters is missing: weight, gradient and two states, 4 bytes each; or weights and gradients "
           "are counted with 16 bits"),
    (0.0, "the adapters are missing"),
    (2.0, "the adapters are counted in 16 bits, without gradients and states"),
    (4 + 4 + 4 + 2, "all four numbers of an adapter's parameter are float32"),
)  # fmt: skip
