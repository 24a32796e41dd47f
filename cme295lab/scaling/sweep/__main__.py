"""`python -m cme295lab.scaling.sweep`: run the course's sweep, or a few runs of it again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cme295lab.scaling.sweep.results import STORED, Sweep
from cme295lab.scaling.sweep.run import run_again, run_sweep


def main() -> int:
    """Run, and say what was found; 1 if a run does not give the stored loss on the same text."""
    parser = argparse.ArgumentParser(prog="python -m cme295lab.scaling.sweep", description=__doc__)
    parser.add_argument("--profile", choices=("fast", "full"), default="fast", help="four runs again, or all of it")
    parser.add_argument("--output", type=Path, default=STORED, help="the file of the sweep; what it has is kept")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args()
    if options.profile == "full":
        print_outcome(run_sweep(options.output, workers=options.workers))
        return 0
    results = run_again(options.output, workers=options.workers)
    for again in results:
        print(f"{again.name:<20} stored {again.stored_loss:.4f}, now {again.loss:.4f}, {again.seconds:.1f} s")
    if not results[0].same_data:
        print("The text is another one here (another version of Python): losses need not agree.")
        return 0
    return 0 if all(again.agrees for again in results) else 1


def print_outcome(sweep: Sweep) -> None:
    """The prediction beside what was trained afterwards."""
    assert sweep.prediction is not None
    predicted = {model["model"]: model for model in sweep.prediction["models"]}
    print(f"{len(sweep.of_kind('sweep'))} runs, {sweep.seconds / 60:.0f} core minutes with trials and checks")
    for record in sweep.of_kind("check"):
        said = predicted[record["model"]]
        low, high = said["interval"]
        print(
            f"{record['model']:>8}, {record['num_parameters']:>9,} parameters: predicted {said['loss']:.3f} "
            f"({low:.3f} to {high:.3f}), trained {record['loss']:.3f}"
        )


if __name__ == "__main__":
    sys.exit(main())
