"""`make bench`: what the README claims, measured. `--only` chooses parts of it.

- simulator: against Triton's interpreter and PyTorch, counting on and off; import time; extra memory of a large launch.
  With --paper-table also the seconds for the paper's table, at full size: a few minutes.
- memory: what watching a training step costs.
- decoding: tokens per second of SmolLM2 against `transformers`, if it was fetched.
- parallel: strategies of data parallelism on real processes, ours and PyTorch's own (some ten minutes).
- pretraining: learning a vocabulary, in plain Python and with the `tokenizers` library.
- scaling: fitting a law, against scipy from each start (a minute); minutes of the stored sweep.
- precision: encoding floats, against ml_dtypes; bytes of AdamW and of 4-bit products, counted.
- quantization: NF4 and its linear layer, against bitsandbytes (half a minute).
- finetuning: LoRA against the peft package and fine-tuning in full; merged against base; a base in 4 bits (a minute).

Everything but the paper's table runs on one thread per process. Prints tables and writes build/benchmarks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cme295lab import simulator
from tests.benchmarks.timing import medians, peak_growth_bytes, seconds_of

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 7


def simulator_rows() -> list[dict[str, float | str]]:
    """Per case: milliseconds in the simulator (plain and counting), the interpreter and PyTorch; ratios."""
    from tests.benchmarks import cases

    print("Triton's interpreter, one program at a time (about a minute):", file=sys.stderr)
    interpreted = json.loads(_child("-m", "tests.benchmarks.interpreter", TRITON_INTERPRET="1"))
    rows: list[dict[str, float | str]] = []
    for case in cases.make_cases():

        def counted(launch=case.launch) -> None:
            with simulator.trace():
                launch()

        def plain(launch=case.launch) -> None:
            with simulator.enabled():
                launch()

        peer = case.torch or (lambda: None)
        ours, with_counts, torch_s = medians(plain, counted, peer, repeats=REPEATS)
        rows.append(
            {
                "case": case.name,
                "simulator ms": ours * 1e3,
                "interpreter ms": interpreted[case.name] * 1e3,
                "speed-up": interpreted[case.name] / ours,
                "torch ms": torch_s * 1e3,
                "simulator / torch": ours / torch_s,
                "counting / plain": with_counts / ours,
            }
        )
        print(_line(rows[-1]), file=sys.stderr)
    return rows


def extra_megabytes() -> dict[str, float]:
    """What launches over 32 M elements add to the process's memory at their peak, plain and counted."""
    from tests.benchmarks import cases

    extra: dict[str, float] = {}
    for name, launch in cases.large_launches().items():
        for how, place in (("plain", simulator.enabled), ("counted", simulator.trace)):
            with place():
                extra[f"{name}, {how}"] = peak_growth_bytes(launch) / 2**20
    return extra


def paper_table_seconds() -> dict[str, float]:
    """Wall-clock seconds of the paper's table at full size, on all cores: executed, and counted without computing."""
    from cme295lab.attention.paper_table import run_paper_table

    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return {
            "executed": seconds_of(lambda: run_paper_table(progress=False)),
            "counted only": seconds_of(lambda: run_paper_table(progress=False, compute=False)),
        }
    finally:
        torch.set_num_threads(threads)


def import_seconds() -> float:
    """Median time of `import cme295lab` in a fresh interpreter, less the interpreter's own start."""
    imports = statistics.median(seconds_of(lambda: _child("-c", "import cme295lab")) for _ in range(9))
    return imports - statistics.median(seconds_of(lambda: _child("-c", "pass")) for _ in range(9))


def _child(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def _line(row: dict[str, float | str]) -> str:
    return "  ".join(f"{v:>10.2f}" if isinstance(v, float) else f"{v:<38}" for v in row.values())


def main() -> None:
    """Measure, print, and keep the figures in build/benchmarks.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "benchmarks.json")
    parser.add_argument("--paper-table", action="store_true", help="time the paper's table, too (minutes)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for part in options.only:
        result |= PARTS[part](options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {options.output}")


def _simulator(options: argparse.Namespace) -> dict[str, Any]:
    rows = simulator_rows()
    print("  ".join([f"{'case':<38}", *(f"{k:>10}" for k in list(rows[0])[1:])]))
    print("\n".join(map(_line, rows)))
    result: dict[str, Any] = {
        "simulator": rows, "import seconds": import_seconds(), "extra megabytes": extra_megabytes()
    }  # fmt: skip
    if options.paper_table:
        result["paper table seconds"] = paper_table_seconds()
    print(f"import cme295lab: {result['import seconds']:.3f} s")
    for name in ("extra megabytes", "paper table seconds"):
        for case, number in result.get(name, {}).items():
            print(f"{name}, {case}: {number:.0f}")
    return result


def _memory(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks.memory import timeline_rows

    rows = timeline_rows()
    for row in rows:
        print(f"MemoryTimeline, {row.model}: a step takes {row.ratio:.2f} times as long")
    return {"memory timeline": [asdict(row) for row in rows]}


def _decoding(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks.decoding import decode_rows

    rows = decode_rows()
    for row in rows:
        print(f"decode SmolLM2 in {row.dtype}: {row.tokens_per_s:.1f} tokens/s, {row.speedup:.2f} times transformers'")
    return {"decoding": [asdict(row) for row in rows]}


def _transformer(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks.transformer import print_rows, training_rows

    rows = training_rows()
    print_rows(rows)
    return {"training step": [asdict(row) for row in rows]}


def _parallel(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks.parallel import parallel_rows, print_table, warm_start_seconds

    start_s, rows = warm_start_seconds(4, 5), parallel_rows()
    print_table(rows)
    print(f"warm start of 4 ranks: {start_s:.2f} s")
    return {"warm start seconds": start_s, "parallel": [asdict(row) for row in rows]}


def _pretraining(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks.pretraining import bpe_rows

    rows = bpe_rows()
    for row in rows:
        print(row)
    return {"bpe training": [asdict(row) for row in rows]}


def _scaling(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks.scaling import print_figures, scaling_figures

    figures = scaling_figures()
    print_figures(figures)
    return {"scaling": asdict(figures)}


def _precision(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks import precision, traffic

    encoded, moved = precision.encode_rows(), [*traffic.adamw_rows(), *traffic.four_bit_rows()]
    precision.print_rows(encoded)
    traffic.print_rows(moved)
    return {"encode": encoded, "traffic": [asdict(row) for row in moved]}


def _quantization(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks.quantization import four_bit_rows, linear_rows, print_rows

    storage, linear = four_bit_rows(), linear_rows()
    print_rows(storage, linear)
    return {"four bit": [asdict(row) for row in storage], "linear in 4 bits": [asdict(row) for row in linear]}


def _finetuning(_: argparse.Namespace) -> dict[str, Any]:
    from tests.benchmarks.finetuning import base_bytes, merged_row, print_rows, step_rows

    steps, merged, base = step_rows(), merged_row(), base_bytes()
    print_rows(steps, merged, base)
    return {"LoRA step": [asdict(row) for row in steps], "merged": asdict(merged), "4-bit base": asdict(base)}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "simulator": _simulator, "memory": _memory, "transformer": _transformer, "decoding": _decoding,
    "parallel": _parallel, "pretraining": _pretraining, "scaling": _scaling,
    "precision": _precision, "quantization": _quantization, "finetuning": _finetuning,
}  # fmt: skip


if __name__ == "__main__":
    main()
