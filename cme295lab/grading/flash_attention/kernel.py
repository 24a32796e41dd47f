"""Part 3: the forward kernel. It runs in the simulator, which counts its traffic and its on-chip memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from cme295lab.grading.exercise import Property
from cme295lab.grading.flash_attention.inputs import Case, accumulation_case, judge_accumulation, random_case
from cme295lab.grading.kernels import kernel_error, refuse_kernel
from cme295lab.grading.observe import Observation, StudentError, TimeLimitReached, Traffic, quiet, time_limit
from cme295lab.grading.result import Kind, Outcome
from cme295lab.units import format_bytes

DEVICE = "A100"
Judge = Callable[[Case, Observation], Outcome]

_FULL = "without a mask, the output is softmax(q kᵀ / sqrt(dim)) v"
_LSE_BYTES = 4  # the log-sum-exp is float32
_TRAFFIC_SLACK = 1.02
_POINTERS = ("q_ptr", "k_ptr", "v_ptr", "o_ptr", "lse_ptr")  # the simulator counts under these names
TIME_LIMIT_S = 5.0


def properties(
    *, seed: int = 0, heads: int = 2, dim: int = 32, dtype: torch.dtype = torch.float32, ragged: int = 100
) -> list[Property]:
    """What must hold for the kernel; the arguments choose other inputs.

    Args:
        seed: seeds the random inputs.
        heads: heads of the inputs.
        dim: head dimension: a power of two, 16 or more.
        dtype: dtype of the inputs, but for the test of accumulators.
        ragged: a sequence length that the tiles (32) do not divide.
    """

    def case(seq: int, **options: Any) -> Case:
        return random_case(seed, (1, heads, seq, dim), dtype=dtype, **options)

    causal = case(128, causal=True, blocks=(64, 32))
    loud = case(64, score_spread=60.0, note="scores around 100")
    full = (_FULL,)
    return [
        _property(_FULL, case(128, blocks=(64, 16)), judge_output, weight=2),
        _property("the causal mask hides keys after the query, and only those", causal, judge_output),
        _property("the log-sum-exp is m + log(l)", causal, judge_lse),
        _property("lengths that the tiles do not divide work", case(ragged), judge_output),
        _property("such lengths work with the causal mask", case(ragged, causal=True, blocks=(32, 64)), judge_output),
        _property("large scores do not overflow", loud, judge_output, needs=full),
        _property("the tile sizes change nothing", case(ragged, blocks=(16, 64)), judge_exact, needs=full),
        _property(
            "float16 inputs are accumulated in float32",
            accumulation_case(512),
            lambda case, seen: judge_accumulation(case, seen.outputs["o"]),
            weight=2,
            needs=full,
        ),
        _property(
            "one tile of scores is on the chip at a time", case(1024), judge_on_chip_memory, weight=2, needs=full
        ),
        _property("K and V are read once per tile of queries", case(256), judge_traffic, weight=2, needs=full),
        _property(
            "with the causal mask, tiles after the diagonal are not read",
            case(256, causal=True),
            judge_traffic,
            needs=full,
        ),
        *compilable(case(64, causal=True, blocks=(64, 64))),
    ]


def _property(name: str, case: Case, judge: Judge, *, weight: float = 1.0, needs: tuple[str, ...] = ()) -> Property:
    return Property(
        name=name,
        observe=partial(observe_kernel, case=case),
        judge=partial(judge, case),
        where=case.text,
        weight=weight,
        needs=needs,
    )


def refuse(kernel: Any) -> Outcome | None:
    """Say why a kernel cannot be run: no kernel, or a stub."""
    return refuse_kernel(kernel, _POINTERS)


def observe_kernel(kernel: Any, case: Case) -> Observation:
    """Run the kernel in the simulator on one input.

    Args:
        kernel: the student's `@triton.jit` kernel.
        case: the input; its heads are laid out one after the other.

    Returns:
        `outputs["o"]` and `outputs["lse"]`, NaN where nothing was written, and what was counted.
    """
    from cme295lab import simulator

    q, k, v = (x.flatten(0, 1).contiguous().clone() for x in (case.q, case.k, case.v))
    heads, seq, dim = q.shape
    o, lse = torch.full_like(q, torch.nan), torch.full((heads, seq), torch.nan)
    grid = (-(-seq // case.blocks[0]), heads)
    before = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
    error, trace = None, None
    try:
        with quiet(), time_limit(TIME_LIMIT_S), simulator.trace(device=DEVICE) as trace:
            kernel[grid](q, k, v, o, lse, dim**-0.5, seq, **_constants(case))
    except (Exception, TimeLimitReached) as reason:
        error = _kernel_error(reason, case)
    tensors = trace.tensors if trace is not None and error is None else {}
    return Observation(
        outputs={"o": o.view(case.q.shape), "lse": lse.view(case.q.shape[:-1])},
        error=error,
        changed_inputs=tuple(n for n, x in (("q", q), ("k", k), ("v", v)) if not torch.equal(x, before[n])),
        traffic={n: Traffic(read_bytes=x.read_bytes, written_bytes=x.written_bytes) for n, x in tensors.items()},
        sram_peak_bytes=trace.sram_peak_bytes if trace is not None and error is None else 0,
    )


def _constants(case: Case) -> dict[str, Any]:
    block_m, block_n = case.blocks
    return {"HEAD_DIM": case.q.shape[-1], "BLOCK_M": block_m, "BLOCK_N": block_n, "CAUSAL": case.causal}


def _kernel_error(error: BaseException, case: Case) -> StudentError:
    """Describe what stopped the kernel, by the student's own line."""
    cause = "the pointers leave the tensor: a row i of a head starts at element head_start + i * HEAD_DIM"
    if case.seq % case.blocks[0] or case.seq % case.blocks[1]:
        cause = (
            "the tile size does not divide the length, and the last tile reaches past the end: the load or store "
            "of this line needs a mask="
        )
    return kernel_error(error, TIME_LIMIT_S, cause)


def judge_output(case: Case, seen: Observation) -> Outcome:
    """Judge the output."""
    if "o" in seen.traffic and not seen.traffic["o"].written_bytes:
        cause = "nothing was written to o: the kernel must store its tile with tl.store"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    return case.judge_output(seen.outputs["o"])


def judge_exact(case: Case, seen: Observation) -> Outcome:
    """Judge the output for other tile sizes."""
    return case.judge_output(seen.outputs["o"], Kind.NOT_EXACT)


def judge_lse(case: Case, seen: Observation) -> Outcome:
    """Judge the log-sum-exp."""
    return case.judge_lse(seen.outputs["lse"])


def expected_traffic(case: Case) -> dict[str, Traffic]:
    """The bytes that the kernel must move: Q, O and the log-sum-exp once, K and V once per tile of queries."""
    (block_m, block_n), seq, dim = case.blocks, case.seq, case.q.shape[-1]
    heads, element_bytes = case.q.shape[0] * case.q.shape[1], case.q.element_size()
    ends = [min(start + block_m, seq) if case.causal else seq for start in range(0, seq, block_m)]
    keys_read = sum(min(-(-end // block_n) * block_n, seq) for end in ends)
    matrix_bytes, key_bytes = heads * seq * dim * element_bytes, heads * keys_read * dim * element_bytes
    return {
        "q": Traffic(read_bytes=matrix_bytes, written_bytes=0),
        "k": Traffic(read_bytes=key_bytes, written_bytes=0),
        "v": Traffic(read_bytes=key_bytes, written_bytes=0),
        "o": Traffic(read_bytes=0, written_bytes=matrix_bytes),
        "lse": Traffic(read_bytes=0, written_bytes=heads * seq * _LSE_BYTES),
    }


def judge_traffic(case: Case, seen: Observation) -> Outcome:
    """Judge the bytes that the kernel moved, tensor by tensor."""
    outcome = judge_output(case, seen)
    if not outcome.passed:
        return outcome
    nothing = Traffic(read_bytes=0, written_bytes=0)
    for name, allowed in expected_traffic(case).items():
        moved = seen.traffic.get(name, nothing)
        for verb, got, want in (
            ("read", moved.read_bytes, allowed.read_bytes),
            ("written", moved.written_bytes, allowed.written_bytes),
        ):
            if got > want * _TRAFFIC_SLACK:
                times = f"{got / want:.3g} times" if want else "not at all"
                difference = f"{name} is {verb}: {format_bytes(got)}, where {format_bytes(want)} suffice ({times})"
                difference = difference.replace("(not at all)", "(it need not be)")
                cause = _traffic_cause(name, verb, got, want, case)
                return Outcome(name="", kind=Kind.TOO_MUCH_TRAFFIC, difference=difference, cause=cause)
    return Outcome(name="")


def _traffic_cause(name: str, verb: str, got: int, want: int, case: Case) -> str:
    if name in ("k", "v"):
        everything = expected_traffic(replace(case, causal=False))[name].read_bytes
        if case.causal and got == everything:
            return "the loop over keys does not stop at the diagonal: tiles that no query sees are read too"
        return f"a program loads each tile of {name} more than once: K and V are read more often than needed"
    if name == "q":
        return "q is loaded again for every tile of keys: load it once, before the loop"
    if verb == "read":
        return f"{name} is read back from HBM: keep the state on the chip, and store it once after the loop"
    return f"{name} is stored more often than once: store it after the loop, not in it"


def judge_on_chip_memory(case: Case, seen: Observation) -> Outcome:
    """Judge what one program holds on the chip: tiles, whatever the length of the sequence."""
    outcome = judge_output(case, seen)
    if not outcome.passed:
        return outcome
    (block_m, block_n), dim = case.blocks, case.q.shape[-1]
    # Generous: six tiles of queries and of keys (loaded, converted, transposed) and ten of scores, float32, alive at
    # once.
    limit_bytes = 4 * (6 * block_m * dim + 6 * block_n * dim + 10 * block_m * block_n)
    if seen.sram_peak_bytes <= limit_bytes:
        return Outcome(name="")
    held, limit = (format_bytes(n, binary=True) for n in (seen.sram_peak_bytes, limit_bytes))
    difference = f"one program holds {held} on the chip; tiles of {block_m} x {block_n} need less than {limit}"
    cause = (
        f"rows of all N = {case.seq} scores are held at once: load BLOCK_N keys at a time and merge them into the state"
    )
    return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)


def compilable(case: Case) -> list[Property]:
    """The property that Triton's compiler accepts the kernel for a GPU; no GPU is needed for that.

    Where there is no compiler (macOS, Windows), the list is empty and everything else is judged.
    """
    from cme295lab import simulator

    return [_compiles(case)] if simulator.frontend.available() else []


def _compiles(case: Case) -> Property:
    def observe(kernel: Any) -> Observation:
        from cme295lab import simulator

        q = case.q.flatten(0, 1)
        lse = torch.empty(q.shape[:2])
        try:
            with quiet():
                simulator.compile_report(
                    kernel, q, q, q, q, lse, q.shape[-1] ** -0.5, case.seq, device=DEVICE, **_constants(case)
                )
        except simulator.SimulatorError as error:
            cause = "the simulator ran it, a GPU would not: often a variable changes its type or shape inside the loop"
            return Observation(error=StudentError(Kind.DOES_NOT_COMPILE, error.message, cause))
        return Observation()

    where = f"compiled for {DEVICE}: {case.text}"
    return Property(
        name="Triton compiles it for a GPU",
        observe=observe,
        judge=lambda seen: Outcome(name=""),
        where=where,
        needs=(_FULL,),
    )
