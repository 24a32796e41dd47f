"""The stored sweep: what was trained, on what, and how well an extrapolation did. Read, written and checked here.

The file is JSON and is rewritten, in one step, after every finished run, so that a sweep that is interrupted goes on
where it was. Nothing in it depends on the machine but `seconds` (of a run, on one core) and the last digits of losses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cme295lab.scaling.fitting.envelope import TrainingCurve
from cme295lab.scaling.records import Run
from cme295lab.scaling.sweep.models import LearningRateRule

STORED = Path(__file__).parents[1] / "data" / "course_sweep.json"
_FORMAT = 1
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All that a sweep has found.

    Args:
        data: facts of the text: tokens, vocabulary, a fingerprint.
        records: one per run, as `train_run` makes them.
        rule: how the learning rate follows from the size; None before the trials are done.
        prediction: what was predicted for a larger budget before it was trained; None before that.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    rule: LearningRateRule | None = None
    prediction: Mapping[str, Any] | None = None

    def of_kind(self, kind: str) -> tuple[Record, ...]:
        """Records of "trial", "sweep" or "check" runs."""
        return tuple(record for record in self.records if record["kind"] == kind)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of the sweep, for the fits; N counts the embedding (once: the head is tied to it)."""
        return tuple(_run(record) for record in self.of_kind("sweep"))

    @property
    def runs_without_embeddings(self) -> tuple[Run, ...]:
        """The same runs with N, and the compute, as Kaplan et al. count them."""
        return tuple(_run(record, embeddings=False) for record in self.of_kind("sweep"))

    @property
    def checks(self) -> tuple[Run, ...]:
        """Runs at the larger budget, trained after the prediction."""
        return tuple(_run(record) for record in self.of_kind("check"))

    @property
    def curves(self) -> tuple[TrainingCurve, ...]:
        """Training curves of the sweep, for approach 1; these are training losses."""
        return tuple(
            TrainingCurve(
                num_parameters=float(record["num_parameters"]),
                num_tokens=np.array([tokens for tokens, _ in record["curve"]], dtype=np.float64),
                loss=np.array([loss for _, loss in record["curve"]], dtype=np.float64),
            )
            for record in self.of_kind("sweep")
        )

    @property
    def seconds(self) -> float:
        """Of all runs, one after the other on one core."""
        return float(sum(record["seconds"] for record in self.records))


def _run(record: Record, *, embeddings: bool = True) -> Run:
    size = record["num_parameters"] - (0 if embeddings else record["num_embedding_parameters"])
    return Run(num_parameters=size, num_tokens=record["num_tokens"], loss=record["loss"])


def load_sweep(path: Path | str | None = None) -> Sweep:
    """Read a sweep; by default the one that the course ships.

    Args:
        path: of a file that `save_sweep` wrote; None means the course's.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file, or of another format.
    """
    source = STORED if path is None else Path(path)
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing; make it with `python -m cme295lab.scaling.sweep --profile full`")
    try:
        values = json.loads(source.read_text())
        if values["format"] != _FORMAT:
            raise ValueError(f"its format is {values['format']!r}, and {_FORMAT} is read here")
        rule = values["learning_rate_rule"]
        return Sweep(
            data=values["data"],
            records=tuple(values["records"]),
            rule=None if rule is None else LearningRateRule(**rule),
            prediction=values["prediction"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is not a sweep: {type(error).__name__}: {error}") from error


def save_sweep(sweep: Sweep, path: Path | str) -> None:
    """Write a sweep, a line per record, so that a half-written file never takes the place of a whole one."""
    target = Path(path)
    rule = sweep.rule and {"coefficient": sweep.rule.coefficient, "exponent": sweep.rule.exponent}
    head = {"format": _FORMAT, "data": dict(sweep.data), "learning_rate_rule": rule, "prediction": sweep.prediction}
    lines = [f'  "{name}": {json.dumps(value)}' for name, value in head.items()]
    records = ",\n".join(f"    {json.dumps(dict(record))}" for record in _ordered(sweep.records))
    text = "{\n" + ",\n".join([*lines, f'  "records": [\n{records}\n  ]']) + "\n}\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    unfinished.write_text(text)
    unfinished.replace(target)


def _ordered(records: Sequence[Record]) -> list[Record]:
    kinds = ("trial", "sweep", "check")
    return sorted(
        records, key=lambda r: (kinds.index(r["kind"]), round(np.log(r["flops"]), 1), r["num_parameters"], r["name"])
    )
