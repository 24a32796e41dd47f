"""Part 2: how many parameters prefix tuning, prompt tuning and adapters train.

Source: X. L. Li and P. Liang, Prefix-tuning, 2021 (2 L l d); N. Houlsby et al., Parameter-efficient transfer learning
for NLP, 2019, section 2.1 (2 d m + d + m, twice in each layer); B. Lester et al., The power of scale for
parameter-efficient prompt tuning, 2021 (l d).
"""

from __future__ import annotations

from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.result import Outcome
from cme295lab.grading.steps import refuse_functions

FUNCTIONS = ("prefix_parameters", "prompt_parameters", "adapter_parameters", "training_parameters")
_UNIT = "parameters"
_ONE_LAYER = "that is one layer: each of them has its own"
_NO_LENGTH = "that is for one position: the prefix has `length` of them"


def properties(*, length: int = 10, bottleneck: int = 64) -> list[Property]:
    """What must hold for the four counts of the page.

    Args:
        length: of the prefix on GPT-2 medium.
        bottleneck: of the adapters on BERT large.
    """
    plain = "a prefix on GPT-2 medium, and on a tiny model"
    return [
        formula_property(plain, [of_prefix(24, length, 16, 16, 64), of_prefix(3, 7, 5, 5, 11)], weight=2),
        formula_property("with grouped queries, fewer heads have keys and values",
                         [of_prefix(32, length, 32, 8, 128), of_prefix(3, 7, 12, 3, 11)]),
        formula_property("prompt tuning trains embeddings in front", [of_prompt(length, 1024), of_prompt(7, 55)]),
        formula_property("two adapters in each layer, biases included",
                         [of_adapters(24, 1024, bottleneck), of_adapters(3, 55, 13)], weight=2),
        formula_property("in training, the MLP and what goes into it are counted",
                         [in_training(24, length, 1024, 512), in_training(3, 7, 55, 13)], weight=2),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def of_prefix(num_layers: int, length: int, num_heads: int, num_kv_heads: int, head_dim: int) -> Question:
    """A prefix of keys and values in each layer."""
    want = 2 * num_layers * length * num_kv_heads * head_dim
    group = num_heads // num_kv_heads
    mistakes = (
        ("query heads are counted: only key/value heads have a prefix", want * group),
        ("that is one head: all key/value heads have their prefix", want / num_kv_heads),
        ("the factor 2 is missing: there are keys and values", want / 2),
        ("the factor 2 is missing, and query heads are counted", want / 2 * group),
        ("queries are counted as well: a prefix has keys and values, no queries", want / 2 * (2 + group)),
        ("queries are counted as well: a prefix has keys and values, no queries", want / 2 * 3),
        (_ONE_LAYER, want / num_layers),
        (_NO_LENGTH, want / length),
        ("head_dim is the width of one head already", want / num_kv_heads / num_heads),
        ("these are bytes: count numbers", want * 4),
    )
    arguments = {
        "num_layers": num_layers, "length": length, "num_heads": num_heads, "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
    }  # fmt: skip
    return Question(
        function="prefix_parameters", arguments=arguments, want=want, mistakes=mistakes, unit=_UNIT, position=0
    )


def of_prompt(length: int, dim: int) -> Question:
    """Embeddings before the first layer."""
    want = length * dim
    mistakes = (
        ("there is no factor 2: these are embeddings, and keys and values come of them", 2 * want),
        (_NO_LENGTH, dim),
        ("each position has dim numbers", length),
        ("these are sums: each position has dim numbers", length + dim),
    )
    return Question(
        function="prompt_parameters", arguments={"length": length, "dim": dim}, want=want, mistakes=mistakes,
        unit=_UNIT, position=1,
    )  # fmt: skip


def of_adapters(num_layers: int, dim: int, bottleneck: int) -> Question:
    """Two adapters in each layer."""
    product, both = dim * bottleneck, 2 * num_layers
    mistakes = (
        ("there are two adapters in each layer: behind attention and behind the MLP", num_layers * (
            2 * product + dim + bottleneck)),
        ("the biases are missing: bottleneck of the way down, dim of the way up", both * 2 * product),
        ("the bias of the way up is missing: dim numbers", both * (2 * product + bottleneck)),
        ("the bias of the way down is missing: bottleneck numbers", both * (2 * product + dim)),
        ("there are two matrices, down and up", both * (product + dim + bottleneck)),
        ("there are two matrices, down and up", both * (product + bottleneck)),
        ("the biases are counted twice", both * 2 * (product + dim + bottleneck)),
        ("there is one bias of each width: bottleneck down, dim up", both * (2 * product + 2 * dim)),
        ("there is one bias of each width: bottleneck down, dim up", both * (2 * product + 2 * bottleneck)),
        (_ONE_LAYER, 2 * (2 * product + dim + bottleneck)),
    )  # fmt: skip
    return Question(
        function="adapter_parameters",
        arguments={"num_layers": num_layers, "dim": dim, "bottleneck": bottleneck},
        want=both * (2 * product + dim + bottleneck), mistakes=mistakes, unit=_UNIT, position=2,
    )  # fmt: skip


def in_training(num_layers: int, length: int, dim: int, hidden: int) -> Question:
    """Embeddings of the prefix, and the MLP that makes keys and values of them."""
    width = 2 * num_layers * dim
    table, down, up = length * dim, dim * hidden + hidden, hidden * width + width
    mistakes = (
        ("the prefix is counted as well: the MLP makes it, it is no parameter in training", (
            table + down + up + length * width)),
        ("that is the prefix that the MLP makes: in training, the MLP is the parameter", length * width),
        ("the embeddings are missing: they go into the MLP, and are trained", down + up),
        ("the MLP is missing", table),
        ("the biases are missing", table + dim * hidden + hidden * width),
        ("the first matrix is missing", table + up),
        ("the second matrix is missing", table + down),
        ("the MLP makes keys and values: its output has 2 * num_layers * dim numbers", (
            table + down + (hidden + 1) * width // 2)),
        ("the MLP makes all layers: its output has 2 * num_layers * dim numbers", (
            table + down + (hidden + 1) * 2 * dim)),
        ("there is one MLP for all positions", table + length * (down + up)),
        ("there is one MLP for all layers", table + num_layers * (down + (hidden + 1) * 2 * dim)),
    )  # fmt: skip
    return Question(
        function="training_parameters",
        arguments={"num_layers": num_layers, "length": length, "dim": dim, "hidden": hidden},
        want=table + down + up, mistakes=mistakes, unit=_UNIT, position=3,
    )  # fmt: skip
