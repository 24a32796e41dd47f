"""What `DecoderLM` keeps for the backward pass, operator by operator.

Autograd keeps a tensor if a derivative needs it: a matrix product keeps its inputs, a softmax its output, a sum
nothing. A tensor that two operators keep is there once. Below, s tokens and b sequences on this rank, h = dim, q and
k the widths of all queries and of all keys, f = mlp_dim, a heads, and e bytes per element (those of the weights):

    operator             keeps                                                              bytes
    norm (two)           its input, and per token 1 number (RMSNorm, fp32) or 2 (LayerNorm) e sbh + 4 sb
    query, key, value    their common input                                                 e sbh
    core, flash          Q, K, V, the log-sum-exp of each row                               e sb(q + 2k) + 4 sba
    core, standard       Q, K, V (one per query head), the probabilities                    3e sbq + e as²b + 8
      with dropout       also a mask of one byte, and the probabilities after it            (1 + e) as²b
    out                  its input                                                          e sbq
    SwiGLU               gate before and after SiLU, up, their product                      4e sbf
    GELU                 up before and after GELU                                           2e sbf
    dropout (two)        a mask of one byte per element                                     sbh
    last norm, head      as above; the head's input                                         2e sbh + 4 sb
    cross-entropy        log-probabilities in fp32, and how many targets there are          4 (sbV + 1)

For GPT-3's shape with dropout and 16-bit elements the layer comes to `sbh (34 + 5 a s / h)` and the statistics of the
norms, which is what Korthikanti et al. count (`korthikanti`). Llama's layer differs: SwiGLU keeps four tensors of a
smaller width, grouped keys are narrower, and nothing is dropped.

Torch's kernels differ in one detail between devices: on a CPU the statistics of a bf16 LayerNorm are bf16, on a GPU
fp32. The CPU's are counted here.

Tensor parallelism divides what lies between the first and the second product of attention and of the MLP; the rest is
whole on each rank unless sequence parallelism divides it. Context parallelism divides s everywhere, but a query still
has a probability for each key.

Source: derived from torch's derivatives; `tests/memory/test_activations.py` holds it against what autograd really
keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cme295lab.memory.formulas.precision import FORMAT_BYTES
from cme295lab.memory.formulas.setting import TrainingSetting
from cme295lab.memory.formulas.shapes import local_kv_dim

INDEX_BYTES = 8  # torch's int64
STATISTIC_BYTES = 4  # fp32
NUMBER_BYTES = 8  # a Python number that takes part in a derivative is kept as an fp64 tensor
Scope = Literal["block input", "core", "core input", "block", "outside"]


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """A tensor, or a few of a kind, that the backward pass needs.

    Attributes:
        operator: what keeps it.
        what: what it is.
        num_bytes: its size on one rank.
        formula: how that comes about.
        scope: where it belongs, which decides whether recomputation drops it.
    """

    operator: str
    what: str
    num_bytes: int
    formula: str
    scope: Scope = "block"


@dataclass(frozen=True)
class Sizes:
    """Elements of the tensors of one micro-batch on one rank, and bytes of an element.

    `whole` is a tensor as wide as the residual stream where tensor parallelism leaves it whole (sequence parallelism
    divides it), `gathered` the same tensor where a product needs all of it.
    """

    tokens: int
    whole_tokens: int
    gathered: int
    whole: int
    query: int
    kv: int
    inner: int
    scores: int
    heads: int
    logits: int
    element_bytes: int
    logit_bytes: int


def sizes_of(setting: TrainingSetting) -> Sizes:
    """The sizes that the formulas above are made of."""
    config, split = setting.config, setting.parallel
    seq = setting.seq // split.context
    tokens = setting.micro_batch * seq
    divided_by = split.tensor if split.sequence_parallel else 1
    heads = config.num_heads // split.tensor
    element = setting.policy.weight_bytes
    return Sizes(
        tokens=tokens,
        whole_tokens=tokens // divided_by,
        gathered=tokens * config.dim,
        whole=tokens * config.dim // divided_by,
        query=tokens * config.query_dim // split.tensor,
        kv=tokens * local_kv_dim(config, split.tensor),
        inner=tokens * config.mlp_dim // split.tensor,
        scores=heads * tokens * setting.seq,
        heads=heads,
        logits=tokens * -(-config.vocab_size // split.tensor),
        element_bytes=element,
        logit_bytes=max(element, FORMAT_BYTES["fp32"]) if setting.fp32_logits else element,
    )


def block_activations(setting: TrainingSetting) -> tuple[SavedTensor, ...]:
    """What one layer keeps for one micro-batch, without recomputation.

    Args:
        setting: the step; its `recompute` is ignored here.
    """
    z, config = sizes_of(setting), setting.config
    e = z.element_bytes
    rows = [
        SavedTensor(operator="attention norm", what="input", num_bytes=e * z.whole, formula="e·sbh",
                    scope="block input"),
        _statistics(setting, "attention norm", "block"),
        SavedTensor(operator="query, key, value", what="input", num_bytes=e * z.whole, formula="e·sbh"),
        *_core(setting, z),
        SavedTensor(operator="out", what="input", num_bytes=e * z.query, formula="e·sbq"),
        SavedTensor(operator="MLP norm", what="input", num_bytes=e * z.whole, formula="e·sbh"),
        _statistics(setting, "MLP norm", "block"),
        SavedTensor(operator="MLP in", what="input", num_bytes=e * z.whole, formula="e·sbh"),
    ]  # fmt: skip
    if config.mlp == "swiglu":
        what, count = "gate before and after SiLU, up, product", 4
    else:
        what, count = "up before and after GELU", 2
    formula = f"{count}e·sbf"
    rows.append(SavedTensor(operator=f"MLP ({config.mlp})", what=what, num_bytes=count * e * z.inner, formula=formula))
    if config.dropout:
        rows.append(SavedTensor(operator="dropout", what="two masks", num_bytes=2 * z.whole, formula="2·sbh"))
    return tuple(rows)


def _core(setting: TrainingSetting, z: Sizes) -> list[SavedTensor]:
    """softmax(Q Kᵀ) V: what recomputing it gives back has scope "core", what it starts from "core input"."""
    e = z.element_bytes
    if setting.attention == "flash":
        return [
            SavedTensor(operator="core (flash)", what="Q, K, V", num_bytes=e * (z.query + 2 * z.kv),
                        formula="e·sb(q + 2k)", scope="core input"),
            SavedTensor(operator="core (flash)", what="log-sum-exp", num_bytes=STATISTIC_BYTES * z.tokens * z.heads,
                        formula="4·sba", scope="core"),
        ]  # fmt: skip
    rows = [
        SavedTensor(operator="core (standard)", what="Q, K, V of each query head", num_bytes=3 * e * z.query,
                    formula="3e·sbq", scope="core"),
        SavedTensor(operator="core (standard)", what="scale", num_bytes=NUMBER_BYTES, formula="8", scope="core"),
        SavedTensor(operator="core (standard)", what="probabilities", num_bytes=e * z.scores,
                    formula="e·as²b", scope="core"),
    ]  # fmt: skip
    if setting.config.dropout:
        rows.append(
            SavedTensor(operator="core (standard)", what="dropout mask and probabilities after it",
                        num_bytes=(1 + e) * z.scores, formula="(1 + e)·as²b", scope="core")
        )  # fmt: skip
    return rows


def kept_activations(setting: TrainingSetting) -> tuple[SavedTensor, ...]:
    """What one layer keeps for one micro-batch under the setting's recomputation.

    "full" keeps the input of the layer. "selective" keeps Q, K and V as they enter the core and drops what lies in it;
    the core's output stays, as the input of the next product.
    """
    rows = block_activations(setting)
    if setting.recompute == "none":
        return rows
    if setting.recompute == "full":
        return tuple(row for row in rows if row.scope == "block input")
    z = sizes_of(setting)
    formula = "e·sb(q + 2k)"
    inputs = SavedTensor(operator="core (recomputed)", what="Q, K, V", num_bytes=z.element_bytes * (z.query + 2 * z.kv),
                         formula=formula, scope="core input")  # fmt: skip
    first = next(index for index, row in enumerate(rows) if row.scope.startswith("core"))
    others = [row for row in rows if not row.scope.startswith("core")]
    return (*others[:first], inputs, *others[first:])


def recomputed_bytes(setting: TrainingSetting) -> int:
    """Bytes that come back into memory while one layer is recomputed in the backward pass."""
    if setting.recompute == "none":
        return 0
    rows = block_activations(setting)
    if setting.recompute == "full":
        return total(row for row in rows if row.scope != "block input")
    return total(row for row in rows if row.scope == "core")


def outer_activations(setting: TrainingSetting) -> tuple[SavedTensor, ...]:
    """What is kept before the first layer (on the first pipeline stage) and after the last (on the last stage).

    Tokens and targets themselves are not among them: they are the caller's.
    """
    z, config, split = sizes_of(setting), setting.config, setting.parallel
    e, rows = z.element_bytes, []
    seq = setting.seq // split.context
    if split.pipeline_rank == 0:
        if config.position == "learned":
            rows.append(SavedTensor(operator="positions", what="their numbers", num_bytes=INDEX_BYTES * seq,
                                    formula="8·s", scope="outside"))  # fmt: skip
        if config.dropout:
            rows.append(SavedTensor(operator="embedding dropout", what="mask", num_bytes=z.whole, formula="sbh",
                                    scope="outside"))  # fmt: skip
    if config.position == "rope":
        rows.append(SavedTensor(operator="rotations", what="cosines and sines", num_bytes=2 * e * seq * config.head_dim,
                                formula="2e·s·head_dim", scope="outside"))  # fmt: skip
    if setting.attention == "standard" and setting.recompute != "none":
        rows.append(SavedTensor(operator="causal mask", what="for the second run", num_bytes=e * seq * setting.seq,
                                formula="e·s²", scope="outside"))  # fmt: skip
    if split.pipeline_rank == split.pipeline - 1:
        rows += [
            SavedTensor(operator="last norm", what="input", num_bytes=e * z.whole, formula="e·sbh", scope="outside"),
            _statistics(setting, "last norm", "outside"),
            SavedTensor(operator="head", what="input", num_bytes=e * z.whole, formula="e·sbh", scope="outside"),
            SavedTensor(operator="cross-entropy", what="log-probabilities, number of targets",
                        num_bytes=z.logit_bytes * (z.logits + 1), formula=f"{z.logit_bytes}·(sbV + 1)",
                        scope="outside"),
        ]  # fmt: skip
    return tuple(rows)


def total(rows: Iterable[SavedTensor]) -> int:
    """Bytes of all of them."""
    return sum(row.num_bytes for row in rows)


def _statistics(setting: TrainingSetting, operator: str, scope: Scope) -> SavedTensor:
    z = sizes_of(setting)
    if setting.config.norm == "layernorm":
        num_bytes, what, formula = 2 * z.element_bytes * z.whole_tokens, "mean and deviation", "2e·sb"
    else:
        num_bytes, what, formula = STATISTIC_BYTES * z.whole_tokens, "1 / root mean square", "4·sb"
    return SavedTensor(operator=operator, what=what, num_bytes=num_bytes, formula=formula, scope=scope)
