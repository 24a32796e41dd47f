"""Formula against measurement: a real step is run under a `MemoryTimeline`, and laid beside its ledger.

Weights, gradients, master weights and optimizer states must agree to the byte, and so must what autograd keeps at the
end of the forward pass. The peak agrees to about a per cent: its temporaries are followed by formula through the
largest operators only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cme295lab.memory.formulas.ledger import MemoryLedger, training_memory
from cme295lab.memory.measurement.real_step import RealStep
from cme295lab.memory.measurement.timeline import MemoryTimeline
from cme295lab.transformer.config import ModelConfig
from cme295lab.units import format_bytes

STATES = ("weight", "gradient", "master weight", "optimizer state")
CLASSES = (*STATES, "activation", "temporary")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A ledger and the step that it describes.

    Attributes:
        ledger: by formula.
        measured: bytes by class at the measured peak; the caller's tokens and targets are "input".
        measured_states: bytes by class when the backward pass has ended.
        measured_saved_bytes: activations that autograd keeps at the end of the forward pass.
        timeline: the whole measurement.
    """

    ledger: MemoryLedger
    measured: dict[str, int]
    measured_states: dict[str, int]
    measured_saved_bytes: int
    timeline: MemoryTimeline = field(repr=False, compare=False)

    @property
    def measured_peak_bytes(self) -> int:
        """The measured peak, without tokens and targets."""
        return sum(size for name, size in self.measured.items() if name != "input")

    @property
    def error(self) -> float:
        """How far the ledger's peak is from the measured one, as a share of that; positive if it is larger."""
        return self.ledger.total_bytes / self.measured_peak_bytes - 1

    def state_rows(self) -> list[tuple[str, int, int]]:
        """(class, by formula, measured) of what lives longer than a step's parts, once all gradients exist."""
        formula = self.ledger.at("optimizer").by_class()
        return [(name, formula.get(name, 0), self.measured_states.get(name, 0)) for name in STATES]

    def rows(self) -> list[tuple[str, int, int]]:
        """(class, by formula, measured) at the peak.

        A gradient on its way into its buffer is a temporary by formula, and may be a gradient to the timeline.
        """
        formula = self.ledger.by_class()
        return [(name, formula.get(name, 0), self.measured.get(name, 0)) for name in CLASSES]

    def __str__(self) -> str:
        lines = [self.ledger.title, f"  {'':<22}{'formula':>10}{'measured':>10}"]
        extra = [
            ("kept after forward", self.ledger.saved_activation_bytes, self.measured_saved_bytes),
            ("peak", self.ledger.total_bytes, self.measured_peak_bytes),
        ]
        for name, formula, measured in self.rows() + extra:
            lines.append(f"  {name:<22}{format_bytes(formula):>10}{format_bytes(measured):>10}")
        return "\n".join([*lines, f"  the formula's peak is {self.error:+.2%} off"])


def compare(config: ModelConfig | str, *, seed: int = 0, **options: Any) -> Comparison:
    """Run a step of training under a timeline and lay it beside its ledger.

    What is measured is the second step, when optimizer states exist.

    Args:
        config: the model, or the name of a preset; small enough for this machine.
        seed: of weights and tokens.
        options: as of `training_memory`; the optimizer runs tensor by tensor, `step="loop"`.

    Raises:
        ValueError: an option that one process cannot run, such as parallelism.

    For instance `print(compare("course-1m", seq=64, micro_batch=2, policy="fp32"))`.
    """
    ledger = training_memory(config, **({"step": "loop"} | options))
    if ledger.setting is None:
        raise AssertionError("a ledger of training has a setting")
    step = RealStep(ledger.setting, seed=seed)
    with MemoryTimeline(model=step.model, optimizer=None if step.masters else step.optimizer) as timeline:
        if step.masters:
            timeline.mark(step.masters, "master weight")
            timeline.mark(step.states, "optimizer state")
        with timeline.phase("forward"):
            loss = step.loss()
        saved = timeline.by_class().get("activation", 0)
        with timeline.phase("backward"):
            loss.backward()
        states = timeline.by_class()
        with timeline.phase("optimizer"):
            step.update()
    return Comparison(ledger=ledger, measured=timeline.peak, measured_states=states,
                      measured_saved_bytes=saved, timeline=timeline)  # fmt: skip
