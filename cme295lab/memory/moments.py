"""When memory peaks: a few moments of a training step, and what is alive at each besides weights and states.

A step's peak is not the sum of everything that it ever holds. Activations pile up through the forward pass and go away
through the backward pass, while gradients come; the optimizer runs when the activations are gone. The candidates:

    loss              all activations, and two tensors of the logits' size: the gradients of the loss with respect to
                      log-probabilities and logits
    head              all activations but the log-probabilities; gradients of the logits, of the head and of its input
    last layer        the activations of all layers, what recomputation brings back, and the backward pass within a
    layer embedding         no activations; the gradient of the embedding on its way into its buffer (a tied one has
    two) optimizer         no activations; what the optimizer computes on the way

Within a layer, the largest of: an MLP product's gradients (input, weight), the gradients around SwiGLU's product, or,
with standard attention, the gradients of the scores and of the probabilities together with what is left of the layer.

Distributed runs add temporaries of their own: DDP and ZeRO reduce gradients in buckets; ZeRO-2 and 3 have the
gradients of a layer whole until they are reduced; ZeRO-3 gathers the weights of a layer, and of the next one ahead of
time.

Source: derived from torch's derivatives; held against measured steps in `tests/memory/test_compare.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from cme295lab.memory import activations, korthikanti
from cme295lab.memory.activations import SavedTensor, sizes_of, total
from cme295lab.memory.setting import TrainingSetting
from cme295lab.memory.shapes import layers_of_stage, share_done, stage_counts

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
    largest, after_mlp = _within_layer(setting)
    within = (*_recomputed(setting), largest, *waiting, *sharding)
    found = []

    def add(name: str, kept: tuple[SavedTensor, ...], temporaries: Iterable[Temporary], share: Fraction) -> None:
        share = Fraction(1) if setting.gradients == "kept" else share
        found.append(Moment(name=name, activations=kept, temporaries=tuple(temporaries), gradient_share=share))

    if split.pipeline_rank == split.pipeline - 1:
        rest = tuple(row for row in outside if row.operator != "cross-entropy")
        add("loss", layers + outside, (*_loss(setting), *sharding), Fraction(0))
        add("head", layers + rest, (*_head(setting), *sharding), Fraction(0))
    stage = layers_of_stage(config, split)
    for name, kept, layer in (("last layer", layers, stage[-1]),
                              ("first layer", activations.kept_activations(setting), stage[0])):  # fmt: skip
        add(name, kept + early, within, share_done(config, split, layer, after_mlp))
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


def _within_layer(setting: TrainingSetting) -> tuple[Temporary, bool]:
    """The backward pass within a layer at its largest, beyond all activations; and whether that is after the MLP."""
    z, config = sizes_of(setting), setting.config
    e = z.element_bytes
    matrix = e * stage_counts(config, setting.parallel).largest_in_mlp
    found = [(e * (z.whole + z.inner) + matrix, "e·(sbh + sbf + hf)", False)]
    if config.mlp == "swiglu":
        found.append((e * (z.whole + 2 * z.inner), "e·(sbh + 2sbf)", False))
    if setting.attention == "standard":
        mlp = total(row for row in activations.block_activations(setting) if row.operator.startswith("MLP"))
        again = activations.recomputed_bytes(setting) if setting.recompute == "selective" else 0
        count = 1 if config.dropout else 2  # the probabilities after dropout are gone by then
        num_bytes = e * (z.whole - z.query + count * z.scores) + again - mlp
        recomputed = " + core" if again else ""
        found.append((num_bytes, f"e·(sbh - sbq + {count}as²b){recomputed} - MLP", True))
    largest, formula, after_mlp = max(found)
    return Temporary(what="backward pass within a layer", num_bytes=largest, formula=formula), after_mlp


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
    counts = stage_counts(setting.config, split)
    shards = split.num_shards if split.zero_stage >= 1 else 1
    elements = -(-(counts.total if setting.step == "foreach" else counts.largest) // shards)
    where = "all tensors" if setting.step == "foreach" else "the largest tensor"
    if policy.masters and policy.masters != policy.gradients:
        yield Temporary(what="gradients in the format of the masters", num_bytes=policy.master_bytes * elements,
                        formula=where)  # fmt: skip
    if setting.optimizer.startswith("adam"):
        roots = 1 if setting.step == "foreach" else 2  # a loop divides the root into a second tensor
        yield Temporary(what="root of the mean square", num_bytes=roots * policy.state_bytes * elements,
                        formula=f"{roots} × {where}")  # fmt: skip


def _ceil(value: Fraction | int) -> int:
    return -(-value.numerator // value.denominator)
