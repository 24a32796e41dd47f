"""When memory peaks: a few moments of a training step, and what is alive at each besides weights and states.

A step's peak is not the sum of everything that it ever holds. Activations pile up through the forward pass and go away
through the backward pass, while gradients come; the optimizer runs when the activations are gone. The candidates:

    loss              all activations, and two tensors of the logits' size: the gradients of the loss with respect to
                      log-probabilities and logits
    head              all activations but the log-probabilities; gradients of the logits, of the head and of its input
    last norm         all activations but those of the head; what the norm computes on the way back
    last layer        the activations of all layers, what recomputation brings back, and the gradients within an MLP
    last attention    past the MLP, with "standard" attention: gradients of probabilities and scores
    first layer,      the same with one layer left: the peak where gradients are not kept, but come while activations go
    first attention
    positions,        no activations; the gradients of the tables on the way into their buffers; a tied one has two
    embedding         parts, and their sum
    optimizer         no activations; what the optimizer computes on the way

Distributed runs add temporaries of their own: DDP and ZeRO reduce gradients in buckets; ZeRO-2 and 3 have the
gradients of a layer whole until they are reduced; ZeRO-3 gathers the weights of a layer, and of the next one ahead of
time.

Source: derived from torch's derivatives; held against measured steps in `tests/memory/test_comparison.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from cme295lab.memory.formulas import activations, korthikanti
from cme295lab.memory.formulas.activations import STATISTIC_BYTES, SavedTensor, sizes_of, total
from cme295lab.memory.formulas.setting import TrainingSetting
from cme295lab.memory.formulas.shapes import layers_of_stage, share_done, stage_counts

BUCKET_BYTES = 25 * 2**20  # of gradients that travel together, as in torch's DDP
PREFETCHED_LAYERS = 2  # ZeRO-3 holds the layer at work and gathers the next


@dataclass(frozen=True, kw_only=True)
class Temporary:
    """Something alive for a moment.

    Attributes:
        what: its name.
        num_bytes: its size on one rank.
        formula: how that comes about.
    """

    what: str
    num_bytes: int
    formula: str


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is alive at a moment of the step, besides weights, masters and optimizer states.

    Attributes:
        name: which moment.
        activations: saved for the backward pass and not used yet.
        temporaries: everything else.
        gradient_share: share of all gradients that exist: 1 where they are kept.
    """

    name: str
    activations: tuple[SavedTensor, ...]
    temporaries: tuple[Temporary, ...]
    gradient_share: Fraction

    @property
    def num_bytes(self) -> int:
        """Activations and temporaries together."""
        return total(self.activations) + sum(item.num_bytes for item in self.temporaries)


def moments_of(setting: TrainingSetting) -> tuple[Moment, ...]:
    """The candidates for the peak, in the order of the step."""
    config, split = setting.config, setting.parallel
    num_elements = stage_counts(config, split).total
    layers, outside = layers_activations(setting), activations.outer_activations(setting)
    early = tuple(row for row in outside if row.operator in _BEFORE_LAYERS)
    sharding, waiting = tuple(_distributed(setting)), tuple(_tied_head(setting))
    found = []

    def add(name: str, kept: tuple[SavedTensor, ...], temporaries: Iterable[Temporary], share: Fraction) -> None:
        share = Fraction(1) if setting.gradients == "kept" else share
        found.append(Moment(name=name, activations=kept, temporaries=tuple(temporaries), gradient_share=share))

    if split.pipeline_rank == split.pipeline - 1:
        rest = tuple(row for row in outside if row.operator != "cross-entropy")
        add("loss", layers + outside, (*_loss(setting), *sharding), Fraction(0))
        add("head", layers + rest, (*_head(setting), *sharding), Fraction(0))
        last_norm = tuple(row for row in rest if row.operator == "last norm")
        done = share_done(config, split, config.num_layers, False)
        add("last norm", layers + early + last_norm, (*_norm(setting), *waiting, *sharding), done)
    stage = layers_of_stage(config, split)
    for name, kept, layer in (("last", layers, stage[-1]),
                              ("first", activations.kept_activations(setting), stage[0])):  # fmt: skip
        done = share_done(config, split, layer, False)
        add(f"{name} layer", kept + early, (*_recomputed(setting), *_mlp(setting), *waiting, *sharding), done)
        if setting.attention == "standard":
            done = share_done(config, split, layer, True)
            add(f"{name} attention", _past_mlp(kept, setting) + early, (*_core(setting), *waiting, *sharding), done)
    if split.pipeline_rank == 0:
        tokens = -(-config.vocab_size // split.tensor) * config.dim
        if config.position == "learned":
            there = num_elements - tokens - config.max_seq * config.dim
            add("positions", (), (*_positions(setting), *waiting, *sharding), Fraction(there, num_elements))
        there = num_elements - tokens
        add("embedding", (), (*_embedding(setting), *waiting, *sharding), Fraction(there, num_elements))
    add("optimizer", (), _optimizer(setting), Fraction(1))
    return tuple(found)


_BEFORE_LAYERS = ("positions", "embedding dropout", "rotations", "causal mask")


def layers_activations(setting: TrainingSetting) -> tuple[SavedTensor, ...]:
    """What the layers of this rank keep for all micro-batches in flight."""
    count = korthikanti.layers_in_flight(setting.config, setting.parallel)
    text = f"{count}" if count.denominator == 1 else f"{float(count):.2f}"
    return tuple(
        SavedTensor(operator=row.operator, what=row.what, num_bytes=_ceil(row.num_bytes * count),
                    formula=f"{text} layers × {row.formula}", scope=row.scope)
        for row in activations.kept_activations(setting)
    )  # fmt: skip


def _loss(setting: TrainingSetting) -> Iterator[Temporary]:
    z = sizes_of(setting)
    yield Temporary(what="gradients of log-probabilities and logits", num_bytes=2 * z.logit_bytes * z.logits,
                    formula=f"2 × {z.logit_bytes}·sbV")  # fmt: skip


def _head(setting: TrainingSetting) -> Iterator[Temporary]:
    z, config = sizes_of(setting), setting.config
    e, vocab = z.element_bytes, -(-config.vocab_size // setting.parallel.tensor)
    yield Temporary(what="gradient of the logits", num_bytes=e * z.logits, formula="e·sbV")
    yield Temporary(what="gradient of the head's input", num_bytes=e * z.gathered, formula="e·sbh")
    yield Temporary(what="gradient of the head", num_bytes=e * vocab * config.dim, formula="e·Vh")


def _norm(setting: TrainingSetting) -> Iterator[Temporary]:
    """RMSNorm's backward pass is written in fp32: its input, the gradient, their product and the result."""
    z = sizes_of(setting)
    if setting.config.norm == "layernorm":
        yield Temporary(
            what="gradients around the last norm", num_bytes=2 * z.element_bytes * z.whole, formula="2e·sbh"
        )
        return
    incoming = 0 if z.element_bytes >= STATISTIC_BYTES else z.element_bytes  # else it is the gradient itself
    yield Temporary(what="backward pass of the last norm", num_bytes=(4 * STATISTIC_BYTES + incoming) * z.whole,
                    formula=f"({incoming} + 4 × 4)·sbh")  # fmt: skip


def _tied_head(setting: TrainingSetting) -> Iterator[Temporary]:
    """The head's share of a tied gradient waits for the embedding's before both go into the buffer."""
    config, split = setting.config, setting.parallel
    if config.tied_head and split.pipeline == 1:
        num_bytes = setting.policy.weight_bytes * -(-config.vocab_size // split.tensor) * config.dim
        yield Temporary(what="gradient of the tied head, waiting", num_bytes=num_bytes, formula="e·Vh")


def _positions(setting: TrainingSetting) -> Iterator[Temporary]:
    """The gradient of the learned positions, and what it is made from."""
    num_bytes = setting.policy.weight_bytes * setting.config.max_seq * setting.config.dim
    yield Temporary(what="gradient of the positions", num_bytes=num_bytes, formula="e·Th")
    yield Temporary(what="incoming gradient", num_bytes=setting.policy.weight_bytes * sizes_of(setting).whole,
                    formula="e·sbh")  # fmt: skip


def _embedding(setting: TrainingSetting) -> Iterator[Temporary]:
    """The gradient of the embedding, and what it is made from; the sum of a tied one's two parts is a third tensor."""
    config, split = setting.config, setting.parallel
    e, z = setting.policy.weight_bytes, sizes_of(setting)
    table, incoming = e * -(-config.vocab_size // split.tensor) * config.dim, e * z.whole
    yield Temporary(what="gradient of the embedding", num_bytes=table, formula="e·Vh")
    if config.tied_head and split.pipeline == 1 and table > incoming:
        yield Temporary(what="sum of both gradients", num_bytes=table, formula="e·Vh")
    else:
        yield Temporary(what="incoming gradient", num_bytes=incoming, formula="e·sbh")


def _recomputed(setting: TrainingSetting) -> Iterator[Temporary]:
    if setting.recompute == "full":
        num_bytes = activations.recomputed_bytes(setting)
        yield Temporary(what="recomputed layer", num_bytes=num_bytes, formula="its activations but the input")


def _mlp(setting: TrainingSetting) -> Iterator[Temporary]:
    """The backward pass of the last product of an MLP, or of SwiGLU's product."""
    z, config = sizes_of(setting), setting.config
    e = z.element_bytes
    matrix = e * stage_counts(config, setting.parallel).largest_in_mlp
    found = [(e * (z.whole + z.inner) + matrix, "e·(sbh + sbf + hf)")]
    if config.mlp == "swiglu":
        found.append((e * (z.whole + 2 * z.inner), "e·(sbh + 2sbf)"))
    num_bytes, formula = max(found)
    yield Temporary(what="gradients within an MLP", num_bytes=num_bytes, formula=formula)


def _is_past(row: SavedTensor) -> bool:
    return row.operator.startswith("MLP") or row.operator in ("dropout", "out")


def _past_mlp(rows: tuple[SavedTensor, ...], setting: TrainingSetting) -> tuple[SavedTensor, ...]:
    """The rows without what one layer kept for its MLP, its dropout and its output projection."""
    if setting.recompute == "full":
        return rows
    one = {(row.operator, row.what): row.num_bytes for row in activations.kept_activations(setting) if _is_past(row)}
    left = (replace(row, num_bytes=row.num_bytes - one.get((row.operator, row.what), 0)) for row in rows)
    return tuple(row for row in left if row.num_bytes > 0)


def _core(setting: TrainingSetting) -> Iterator[Temporary]:
    """The backward pass of standard attention: first of the product with V, then of the softmax."""
    z = sizes_of(setting)
    e = z.element_bytes
    again = activations.recomputed_bytes(setting)
    if setting.recompute == "full":
        again -= total(row for row in activations.block_activations(setting) if _is_past(row))
    if again:
        yield Temporary(what="recomputed", num_bytes=again, formula="what attention keeps, of one layer")
    found = [(e * (z.whole + 3 * z.query + z.scores), "e·(sbh + 3sbq + as²b)")]
    # At the softmax, V is gone, and with dropout the probabilities after it.
    count = 1 if setting.config.dropout else 2
    found.append((e * (z.whole + count * z.scores), f"e·(sbh + {count}as²b)"))
    num_bytes, formula = max(found)
    yield Temporary(what="gradients within attention", num_bytes=num_bytes, formula=formula)


def _distributed(setting: TrainingSetting) -> Iterator[Temporary]:
    split, policy = setting.parallel, setting.policy
    counts = stage_counts(setting.config, split)
    if split.num_shards > 1 and split.zero_stage < 2:
        num_bytes = min(BUCKET_BYTES, policy.gradient_bytes * counts.total)
        yield Temporary(what="bucket of gradients on its way", num_bytes=num_bytes, formula="25 MiB")
    if split.zero_stage >= 2:
        num_bytes = policy.weight_bytes * counts.largest_layer
        yield Temporary(what="gradients of a layer before they are reduced", num_bytes=num_bytes,
                        formula="e × parameters of a layer")  # fmt: skip
    if split.zero_stage >= 3:
        num_layers = min(PREFETCHED_LAYERS, counts.num_layers)
        yield Temporary(what="gathered weights", num_bytes=policy.weight_bytes * num_layers * counts.largest_layer,
                        formula=f"{num_layers} × e × parameters of a layer")  # fmt: skip


def _optimizer(setting: TrainingSetting) -> Iterator[Temporary]:
    """What the update computes on the way: nothing if it is fused."""
    if setting.step == "fused" or setting.offload_states:
        return
    policy, split = setting.policy, setting.parallel
    counts, loop = stage_counts(setting.config, split), setting.step == "loop"
    where = "the largest tensor" if loop else "all tensors"
    elements = counts.largest if loop else counts.total
    shards = split.num_shards if split.zero_stage >= 1 else 1
    if policy.masters and policy.masters != policy.gradients:
        yield Temporary(what="gradients in the format of the masters", formula=where,
                        num_bytes=policy.master_bytes * -(-elements // shards))  # fmt: skip
    if setting.optimizer.startswith("ada"):
        if loop and setting.optimizer != "adafactor":  # Adam divides the root into a second tensor
            elements = 2 * counts.largest if policy.masters else counts.largest_in_loop
        yield Temporary(what="root of the mean square", formula=where,
                        num_bytes=policy.state_bytes * -(-elements // shards))  # fmt: skip


def _ceil(value: Fraction | int) -> int:
    return -(-value.numerator // value.denominator)
