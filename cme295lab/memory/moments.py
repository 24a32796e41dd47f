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
from cme295lab.memory.shapes import ParameterShape, parameter_shapes

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
        gradients: whether all gradients exist (True) or, of those that are freed after each step, none does yet.
    """

    name: str
    activations: tuple[SavedTensor, ...]
    temporaries: tuple[Temporary, ...]
    gradients: bool

    @property
    def num_bytes(self) -> int:
        """Activations and temporaries together."""
        return total(self.activations) + sum(item.num_bytes for item in self.temporaries)


def moments_of(setting: TrainingSetting) -> tuple[Moment, ...]:
    """The candidates for the peak, in the order of the step."""
    shapes, kept = parameter_shapes(setting.config, setting.parallel), setting.gradients == "kept"
    layers, outside = layers_activations(setting), activations.outer_activations(setting)
    sharding = tuple(_distributed(setting, shapes))
    within = tuple(_within_layer(setting, shapes))
    early = tuple(row for row in outside if row.operator in _BEFORE_LAYERS)
    found = []
    if setting.parallel.pipeline_rank == setting.parallel.pipeline - 1:
        rest = tuple(row for row in outside if row.operator != "cross-entropy")
        found += [
            Moment(name="loss", activations=layers + outside, temporaries=(*_loss(setting), *sharding), gradients=kept),
            Moment(name="head", activations=layers + rest, temporaries=(*_head(setting), *sharding), gradients=kept),
        ]
    waiting = tuple(_tied_head(setting))
    found += [
        Moment(name="last layer", activations=layers + early, temporaries=within + waiting + sharding, gradients=kept),
        Moment(name="embedding", activations=(), temporaries=tuple(_embedding(setting)) + waiting + sharding,
               gradients=True),
        Moment(name="optimizer", activations=(), temporaries=tuple(_optimizer(setting, shapes)), gradients=True),
    ]  # fmt: skip
    return tuple(found)


_BEFORE_LAYERS = ("positions", "embedding dropout", "rotations")


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


def _embedding(setting: TrainingSetting) -> Iterator[Temporary]:
    config, split = setting.config, setting.parallel
    e, z = setting.policy.weight_bytes, sizes_of(setting)
    if split.pipeline_rank:
        return
    yield Temporary(what="gradient of the embedding's output", num_bytes=e * z.whole, formula="e·sbh")
    num_bytes = e * -(-config.vocab_size // split.tensor) * config.dim
    if setting.gradients == "kept" or config.tied_head:
        yield Temporary(what="gradient of the embedding", num_bytes=num_bytes, formula="e·Vh")


def _within_layer(setting: TrainingSetting, shapes: Iterable[ParameterShape]) -> Iterator[Temporary]:
    """The backward pass of the last layer at its largest, beyond the activations of all layers."""
    z, config = sizes_of(setting), setting.config
    e = z.element_bytes
    recomputed = activations.recomputed_bytes(setting)
    if setting.recompute == "full":
        yield Temporary(what="recomputed layer", num_bytes=recomputed, formula="its activations but the input")
    matrix = e * max((s.num_elements for s in shapes if s.part == "mlp"), default=0)
    product = e * (z.whole + z.inner) + matrix
    gate = e * (z.whole + 2 * z.inner) if config.mlp == "swiglu" else 0
    scores = 0
    if setting.attention == "standard":
        mlp = total(row for row in activations.block_activations(setting) if row.operator.startswith("MLP"))
        again = recomputed if setting.recompute == "selective" else 0
        scores = e * (z.whole + 2 * z.query + 2 * z.scores) + again - mlp
    largest = max(product, gate, scores)
    formula = {product: "e·(sbh + sbf + hf)", gate: "e·(sbh + 2sbf)", scores: "e·(sbh + 2sbq + 2as²b) - MLP"}[largest]
    yield Temporary(what="backward pass within a layer", num_bytes=largest, formula=formula)


def _distributed(setting: TrainingSetting, shapes: Iterable[ParameterShape]) -> Iterator[Temporary]:
    split, policy = setting.parallel, setting.policy
    layer_elements: dict[int, int] = {}
    total_elements = 0
    for shape in shapes:
        total_elements += shape.num_elements
        if shape.layer is not None:
            layer_elements[shape.layer] = layer_elements.get(shape.layer, 0) + shape.num_elements
    largest = max(layer_elements.values())
    if split.num_shards > 1 and split.zero_stage < 2:
        num_bytes = min(BUCKET_BYTES, policy.gradient_bytes * total_elements)
        yield Temporary(what="bucket of gradients on its way", num_bytes=num_bytes, formula="25 MiB")
    if split.zero_stage >= 2:
        yield Temporary(what="gradients of a layer before they are reduced", num_bytes=policy.weight_bytes * largest,
                        formula="e × parameters of a layer")  # fmt: skip
    if split.zero_stage >= 3:
        num_layers = min(PREFETCHED_LAYERS, len(layer_elements))
        yield Temporary(what="gathered weights", num_bytes=policy.weight_bytes * num_layers * largest,
                        formula=f"{num_layers} × e × parameters of a layer")  # fmt: skip


def _optimizer(setting: TrainingSetting, shapes: Iterable[ParameterShape]) -> Iterator[Temporary]:
    """What the update computes on the way: nothing if it is fused."""
    if setting.step == "fused" or setting.offload_states:
        return
    policy, split = setting.policy, setting.parallel
    counts = [shape.num_elements for shape in shapes]
    shards = split.num_shards if split.zero_stage >= 1 else 1
    elements = -(-(sum(counts) if setting.step == "foreach" else max(counts)) // shards)
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
