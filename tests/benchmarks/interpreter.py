"""Times the cases in Triton's own interpreter. Run with TRITON_INTERPRET=1; prints {case: seconds} as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys

import torch


def main() -> None:
    """Time every case named on the command line (all without arguments)."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("tests.benchmarks.interpreter: set TRITON_INTERPRET=1, Triton reads it when kernels are defined")
    torch.set_num_threads(1)
    from cme295lab.attention import flash
    from tests.benchmarks import cases
    from tests.benchmarks.timing import seconds_of

    flash.place_to_run = lambda tensor: contextlib.nullcontext()  # the interpreter takes CPU tensors by itself
    names = sys.argv[1:]
    result = {}
    for case in cases.make_cases():
        if not names or case.name in names:
            result[case.name] = sorted(seconds_of(case.launch) for _ in range(case.interpreter_repeats))[
                case.interpreter_repeats // 2
            ]
            print(f"  interpreter: {case.name}: {result[case.name]:.2f} s", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
