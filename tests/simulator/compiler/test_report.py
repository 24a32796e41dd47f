"""Kernels compiled for GPUs that are not here: figures, texts, and the ways in which arguments can be wrong."""

import json
import re
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from cme295lab import hardware, simulator
from cme295lab.simulator import SimulatorError
from cme295lab.simulator.compiler import build
from tests.simulator.compiler.kernels import (
    copy_kernel,
    empty,
    matmul_report,
    sum_columns_kernel,
    transpose_kernel,
)

pytestmark = pytest.mark.needs_triton  # its compiler


@pytest.mark.parametrize(
    ("device", "kind", "count"),
    [("A100", "HMMA.16816.F32", 16), ("H100", "HGMMA.64x64x16.F32", 2), ("B200", "UTCHMMA", 4)],
)
def test_a_product_of_16_bit_numbers(device, kind, count):
    done = matmul_report(device)
    assert done.tensor_core_instructions == {kind: count}
    assert done.uses_tensor_cores
    assert kind.split(".")[0] in done.sass
    assert 16 <= done.registers <= 255
    assert (done.spill_bytes, done.spill_store_bytes, done.spill_load_bytes, done.stack_bytes) == (0, 0, 0, 0)
    assert 0 < done.shared_bytes <= done.device.max_shared_bytes_per_block
    assert done.fits
    assert (done.num_warps, done.num_stages, done.kernel) == (4, 3, "matmul_kernel")
    assert f"sm_{done.device.compute_capability}" in done.ptx
    assert {"ttir", "ttgir", "llir", "ptx", "sass"} <= set(done.asm)
    assert done.warnings == []


@pytest.mark.parametrize("device", ["A100", "H100", "B200", "L4"])
def test_main_loop(device):
    """64·64·32 multiply-adds and two tiles of 64·32 halves an iteration, by cp.async of 16 B."""
    loop = matmul_report(device).main_loop
    assert loop.tensor_core_flops == loop.flops_per_iteration == loop.source_dot_flops == 2 * 64 * 64 * 32
    assert loop.iterations == 1
    assert loop.loads_by_width == {"LDGSTS 16 B": 4}
    assert loop.loaded_bytes == 2 * 64 * 32 * 2
    assert sum(loop.mix.values()) == loop.num_instructions == len(loop.instructions)
    assert loop.mix["async copies"] == 4
    assert loop.mix["control"] >= 1


def test_the_loop_of_a_small_tile_repeats_its_work_and_an_unrolled_loop_does_several_iterations():
    small = matmul_report(block=16)
    assert (small.main_loop.iterations, small.main_loop.flops_per_iteration) == (2, 2 * 16 * 16 * 32)
    assert "a pass does 2 times this" in str(small)
    unrolled = matmul_report("H100", num_stages=1).main_loop
    assert unrolled.iterations * unrolled.flops_per_iteration == unrolled.tensor_core_flops
    assert unrolled.flops_per_iteration == 2 * 64 * 64 * 32


def test_a_product_in_three_parts_is_one_iteration():
    loop = matmul_report(dtype=torch.float32, precision="tf32x3").main_loop
    assert (loop.tensor_core_flops, loop.source_dot_flops, loop.iterations) == (3 * 262144, 262144, 1)


def test_fp32_products_without_tensor_cores():
    loop = matmul_report(dtype=torch.float32, precision="ieee").main_loop
    assert loop.tensor_core_flops == 0
    assert loop.flops_per_iteration == loop.fp32_flops == 262144


@pytest.mark.parametrize(("dtype", "kind"), [(torch.int8, "IMMA"), (torch.float64, "DMMA")])
def test_other_tensor_cores(dtype, kind):
    x = empty(64, 64, dtype=dtype)

    out = empty(64, 64, dtype=torch.int32 if dtype is torch.int8 else dtype)
    done = simulator.compile_report(square_kernel, x, out, device="A100", BLOCK=64)
    assert [k.split(".")[0] for k in done.tensor_core_instructions] == [kind]
    assert done.main_loop is None


@triton.jit
def square_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.dot(x, x, out_dtype=out_ptr.dtype.element_ty))


def test_a_loop_without_products_is_found_too():
    x = empty(64, 128, dtype=torch.float32)
    done = simulator.compile_report(sum_columns_kernel, x, x, 64, 128, device="A100", BLOCK=128)
    assert done.main_loop.flops_per_iteration is None
    assert done.main_loop.mix["global loads"] >= 1
    assert done.main_loop.fp32_flops == done.main_loop.mix["fp32"] * 4 * 32  # additions
    x = empty(128)
    assert simulator.compile_report(copy_kernel, x, x, True, device="A100", BLOCK=128).main_loop is None


def test_accesses_by_width_and_line():
    x = empty(256, 256, dtype=torch.float32)
    done = simulator.compile_report(transpose_kernel, x, x, 256, 256, device="A100", BLOCK=64)
    first = transpose_kernel.fn.__code__.co_firstlineno
    assert done.loads_by_width == {"LDG 16 B": 8}
    assert done.stores_by_width == {"STG 16 B": 8}
    assert done.accesses_by_line == {first + 4: {"load 16 B": 8}, first + 5: {"store 16 B": 8}}
    assert set(done.shared_memory_ops) >= {"STS"}  # the tile is turned around through shared memory
    assert sum(done.instruction_mix.values()) == done.sass.count(";") - done.sass.count("NOP")


def test_few_warps_spill():
    done = matmul_report(block=128, num_stages=1, num_warps=1)  # 512 accumulators a thread
    assert done.spill_store_bytes > 0
    assert done.spill_load_bytes > 0
    assert done.stack_bytes > 0
    assert "local memory" in done.instruction_mix


def test_large_tiles_do_not_fit():
    small, large = matmul_report(), matmul_report(block=128, num_stages=14)
    assert large.shared_bytes > large.device.max_shared_bytes_per_block > small.shared_bytes
    assert not large.fits
    assert large.ctas_per_sm == 0
    assert "does not fit" in str(large)
    assert "(fits)" in str(small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint16, torch.float64, torch.bool])
def test_arguments_of_all_types(dtype):
    x = torch.empty(128, dtype=dtype)
    done = simulator.compile_report(copy_kernel, x, x, True, device=hardware.get_device("A100"), BLOCK=128)
    assert not done.uses_tensor_cores
    assert done.shared_bytes == 0
    assert done.shared_memory_ops == {}
    assert "none" in str(done)


def test_the_report_reads_as_text_html_and_json():
    done = matmul_report()
    text, page = str(done), done._repr_html_()
    for part in ("matmul_kernel for A100-80GB-SXM (sm_80), 4 warps, 3 stages", f"{done.registers} a thread",
                 "16 HMMA.16816.F32", "12 LDGSTS (cp.async) of 16 B", "262 kFLOP (tl.dot in the source: 262 kFLOP)",
                 f"{done.ctas_per_sm}, limited by {done.limited_by}"):  # fmt: skip
        assert part in text
        assert part in page
    assert "nothing to complain about" in text
    assert "<details><summary>SASS" in page
    assert "HMMA.16816.F32 R" in page
    assert "<script" not in page
    facts = json.loads(json.dumps(done.to_dict()))
    assert facts["registers"] == done.registers
    assert facts["main_loop"]["flops_per_iteration"] == 262144
    assert facts["ctas_by_resource"]["warps"] == 16
    assert "sass" not in facts
    assert done.to_dict(code=True)["sass"] == done.sass


def test_html_is_escaped():
    wrong = matmul_report(num_stages=1)
    wrong.warnings.append("<b>&")
    assert "&lt;b&gt;&amp;" in wrong._repr_html_()
    assert "<b>&<" not in wrong._repr_html_()


def test_a_second_compilation_is_kept(monkeypatch):
    first = matmul_report()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert matmul_report().asm is first.asm
    assert matmul_report("A100-40GB").asm is first.asm  # the same architecture


def test_what_makes_another_compilation(monkeypatch):
    monkeypatch.setattr(build, "_built", {})
    made = []
    monkeypatch.setattr(build, "_compile", lambda *_: made.append(1) or "made")
    monkeypatch.setattr("cme295lab.simulator.compiler.report._report", lambda *_: None)
    options = [{}, {"num_warps": 8}, {"num_stages": 2}, {"block": 32}, {"stride": 3}, {"dtype": torch.bfloat16}]
    for one in [*options, {"device": "RTX-4090"}, *options]:
        matmul_report(**one)
    assert len(made) == len(options) + 1


def test_numbers_that_are_1_or_divisible_by_16_are_known_to_the_compiler():
    known, unknown = matmul_report(stride=1), matmul_report(stride=3)
    assert set(known.loads_by_width) == {"LDGSTS 16 B"}
    assert "LDG 2 B" in unknown.loads_by_width


def test_a_view_that_starts_at_an_odd_place_is_not_aligned():
    x = torch.empty(1025, dtype=torch.float32)
    whole = simulator.compile_report(copy_kernel, x, x, True, device="A100", BLOCK=1024)
    view = simulator.compile_report(copy_kernel, x[1:], x, True, device="A100", BLOCK=1024)
    assert whole.loads_by_width == {"LDG 16 B": 2}
    assert set(view.loads_by_width) == {"LDG 4 B"}


@triton.autotune(configs=[triton.Config({"BLOCK": 256}, num_warps=2, num_stages=5)], key=["n"])
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def tuned_kernel(x_ptr, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(x_ptr + lane, 1.0)
    else:
        tl.store(x_ptr + lane, 1.0, mask=lane < n)


def test_an_autotuner_gives_the_defaults():
    x = torch.empty(1024)
    done = simulator.compile_report(tuned_kernel, x, 1024)
    assert (done.num_warps, done.num_stages, done.device.name) == (2, 5, "H100-SXM5")
    assert re.search(r"reqntid 64", done.ptx)
    assert simulator.compile_report(tuned_kernel, x, 1024, num_warps=4).num_warps == 4


@triton.jit
def descriptor_matmul_kernel(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        acc = tl.dot(a.load([tl.program_id(0) * BM, k]), b.load([k, tl.program_id(1) * BN]), acc)
    c.store([tl.program_id(0) * BM, tl.program_id(1) * BN], acc.to(tl.float16))


@pytest.mark.parametrize("device", ["H100", "B200"])
def test_tensor_descriptors_are_loaded_by_tma(device):
    a, b, c = (TensorDescriptor.from_tensor(empty(256, 256), [64, 64]) for _ in range(3))
    done = simulator.compile_report(descriptor_matmul_kernel, a, b, c, 256, device=device, BM=64, BN=64, BK=64)
    assert set(done.loads_by_width) == {"UTMALDG"}
    assert done.stores_by_width == {"UTMASTG": 1}
    assert done.main_loop.loads_by_width == {"UTMALDG": 2}
    assert done.main_loop.flops_per_iteration == 2 * 64 * 64 * 64
    assert done.warnings == []
    assert "2 UTMALDG (TMA)" in str(done)


@triton.jit
def tuple_kernel(xs, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(xs[1] + lane, tl.load(xs[0] + lane) * xs[2])


def test_arguments_in_tuples():
    x = empty(512, dtype=torch.float32)
    done = simulator.compile_report(tuple_kernel, (x, x, 3), device="A100", BLOCK=512)
    assert (done.loads_by_width, done.stores_by_width) == ({"LDG 16 B": 1}, {"STG 16 B": 1})


def test_mistakes():
    x = torch.empty(128)
    with pytest.raises(ValueError, match="H1OO"):
        simulator.compile_report(copy_kernel, x, x, True, device="H1OO", BLOCK=128)
    with pytest.raises(ValueError, match="num_warps must be a power of two, got 3"):
        simulator.compile_report(copy_kernel, x, x, True, num_warps=3, BLOCK=128)
    with pytest.raises(ValueError, match="num_stages must be an integer of 1 or more, got 0"):
        simulator.compile_report(copy_kernel, x, x, True, num_stages=0, BLOCK=128)
    with pytest.raises(SimulatorError, match="argument 'flag' of type dict has no type in a kernel"):
        simulator.compile_report(copy_kernel, x, x, {}, device="A100", BLOCK=128)
    with pytest.raises(SimulatorError, match="compiling copy_kernel: missing a required argument: 'BLOCK'"):
        simulator.compile_report(copy_kernel, x, x, True, device="A100")
    with pytest.raises(SimulatorError, match=r"argument 'x_ptr' of dtype torch.complex64 has no type in a kernel"):
        simulator.compile_report(copy_kernel, x.to(torch.complex64), x, True, device="A100", BLOCK=128)
    with pytest.raises(SimulatorError, match="Triton compiles for sm_80 and later; T4 is sm_75"):
        simulator.compile_report(copy_kernel, x, x, True, device="T4", BLOCK=128)
    with pytest.raises(SimulatorError, match=r"decorated with @triton.jit, got a function"):
        simulator.compile_report(lambda: None)


@pytest.mark.parametrize("device", ["A100", "H100", "B200"])
def test_registers_and_stack_are_those_of_tritons_machine_code(device, monkeypatch, tmp_path):
    """ptxas is run a second time, for its words: with the same flags it makes the same code."""
    monkeypatch.setattr(build, "_built", {})
    disassemble = build._Tools.disassemble
    cubin = tmp_path / "kernel.cubin"

    def keep(self, code):
        cubin.write_bytes(code)
        return disassemble(self, code)

    monkeypatch.setattr(build._Tools, "disassemble", keep)
    report = matmul_report(device, num_warps=1, num_stages=1, block=128)
    tool = build._Tools(report.device.compute_capability).folder / "cuobjdump"
    words = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK):(\d+)", words))
    assert (int(usage["REG"]), int(usage["STACK"])) == (report.registers, report.stack_bytes)
    assert report.stack_bytes > 0


def test_without_triton_the_error_says_so():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from cme295lab import simulator\n"
        "try:\n    simulator.compile_report(None)\n"
        "except simulator.SimulatorError as error:\n    print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:")
    assert "Triton" in done.stdout
