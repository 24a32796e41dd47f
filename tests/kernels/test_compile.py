"""Every kernel, compiled for three generations of GPUs without having one: it must fit, and use their tensor cores."""

import ast
import re
from functools import cache

import pytest
import torch
import triton

from cme295lab import hardware, simulator
from cme295lab.attention.block_sizes import CONFIGS
from cme295lab.kernels import adamw, flash_attention, matmul, nf4, softmax, standard_attention
from cme295lab.quantization.four_bit_kernels import choose_tiles

pytestmark = pytest.mark.needs_triton  # its compiler

TRITON = tuple(int(n) for n in triton.__version__.split(".")[:2])
DEVICES = {80: "A100", 90: "H100", 100: "B200"}
SMALLEST_SHARED_BYTES = 99 * 1024  # of a block on an sm_89 or sm_120 GPU
SPILLED_BYTES = {("forward", 128, 80): 48, ("key_value_grads", 128, 80): 32}  # the others: none
PRODUCTS_PER_BLOCK = {"forward": 2, "key_value_grads": 4, "query_grad": 3}


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@cache
def compile_flash(name: str, device: str, dim: int, dtype: torch.dtype = torch.bfloat16, causal: bool = True):
    """The flash kernel called `name` in its default configuration."""
    config = CONFIGS[dtype.itemsize, max(16, 1 << (dim - 1).bit_length())]
    launch = getattr(config, "query_grad" if name == "delta" else name)
    x, row = tensor(4, 8, 1024, dim, dtype=dtype), tensor(4, 8, 1024, dtype=torch.float32)
    lengths = (0.125, 1024, 1024)
    args = {
        "forward": (x, x, x, x, row, *lengths, *x.stride() * 4),
        "delta": (x, x, row, 1024, *x.stride() * 2),
        "key_value_grads": (x, x, x, x, row, row, x, x, *lengths, *x.stride() * 6),
        "query_grad": (x, x, x, x, row, row, x, *lengths, *x.stride() * 5),
    }[name]
    constants = {"HEAD_DIM": dim, "BLOCK_D": max(16, 1 << (dim - 1).bit_length()), "BLOCK_M": launch.block_m}
    if name != "delta":
        precision = "ieee" if dtype is torch.float32 else "tf32"
        constants |= {"GROUP": 1, "BLOCK_N": launch.block_n, "CAUSAL": causal, "PRECISION": precision}
    options = {"num_warps": 8 if name == "delta" else launch.num_warps, "num_stages": launch.num_stages}
    return simulator.compile_report(
        getattr(flash_attention, f"{name}_kernel"), *args, device=device, **constants, **options
    )


@pytest.mark.parametrize("compute_capability", DEVICES)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ["forward", "delta", "key_value_grads", "query_grad"])
def test_flash_kernels_compile_fit_and_use_tensor_cores(name, dim, compute_capability):
    device = hardware.get_device(DEVICES[compute_capability])
    assert device.compute_capability == compute_capability
    compiled = compile_flash(name, DEVICES[compute_capability], dim)
    assert compiled.fits
    assert compiled.uses_tensor_cores == (name != "delta")
    if compute_capability < 100 and TRITON >= (3, 8):  # earlier ones also take up to 128 KiB, which sm_90 has
        assert compiled.shared_bytes <= SMALLEST_SHARED_BYTES


@pytest.mark.skipif(TRITON < (3, 8), reason="Triton 3.6 and 3.7 allot registers worse: 100 B to 24 kB a thread spilled")
@pytest.mark.parametrize("compute_capability", DEVICES)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ["forward", "delta", "key_value_grads", "query_grad"])
def test_flash_kernels_keep_everything_in_registers(name, dim, compute_capability):
    compiled = compile_flash(name, DEVICES[compute_capability], dim)
    assert compiled.spill_bytes <= SPILLED_BYTES.get((name, dim, compute_capability), 0)


@pytest.mark.parametrize("name", ["forward", "key_value_grads", "query_grad"])
def test_flash_kernels_in_fp32_compile_and_fit(name):
    compiled = compile_flash(name, "H100", 64, torch.float32)
    assert compiled.shared_bytes <= SMALLEST_SHARED_BYTES
    assert not compiled.uses_tensor_cores  # which would round the inputs to TF32
    assert compiled.spill_bytes == 0
    assert any('input_precision "ieee"' in w for w in compiled.warnings)


@pytest.mark.parametrize("device", DEVICES.values())
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", PRODUCTS_PER_BLOCK)
def test_flops_of_the_main_loop_of_a_flash_kernel(name, dim, device):
    """2 BLOCK_M BLOCK_N d for each product, whether read off the matrix instructions or off the source."""
    launch = getattr(CONFIGS[2, dim], name)
    loop = compile_flash(name, device, dim).main_loop
    expected = PRODUCTS_PER_BLOCK[name] * 2 * launch.block_m * launch.block_n * dim
    assert loop.flops_per_iteration == loop.source_dot_flops == expected
    assert loop.iterations == 1
    assert loop.mix["async copies"] > 0  # the next tiles are on their way


def test_flash_kernels_compile_for_a_padded_head_dim():
    assert compile_flash("forward", "A100", 40).fits
    assert compile_flash("forward", "A100", 40).uses_tensor_cores


def test_flash_forward_uses_the_hardware_exponential_of_base_2():
    sass = compile_flash("forward", "H100", 64).asm["sass"]
    assert "MUFU.EX2" in sass
    assert re.search(r"\bHGMMA", sass)  # Hopper's own matrix instructions, not those of the generation before


def compile_standard(name: str, device: str):
    x, s = tensor(4, 8, 1024, 64), tensor(4, 8, 1024, 1024)
    keep = tensor(4, 8, 1024, 1024, dtype=torch.uint8)
    lengths = (1024, 1024)
    scores = {"BLOCK_M": 64, "BLOCK_N": 64}
    product = {"GROUP": 1, "HEAD_DIM": 64, "BLOCK_K": 64, "PRECISION": "tf32"}
    rows = {"BLOCK_ROWS": 8, "BLOCK_COLS": 1024}
    args, constants = {
        "scores": ((x, x, s, 0.125, *lengths, *x.stride() * 2), {**scores, **product, "CAUSAL": True}),
        "mask": ((s, *lengths), {**scores, "CAUSAL": True}),
        "softmax": ((s, s, 4 * 8 * 1024, 1024), rows),
        "dropout": ((s, s, keep, 0.1, 7, *lengths), scores),
        "output": ((s, x, x, *lengths, *x.stride() * 2), {**product, "BLOCK_M": 64, "BLOCK_D": 64}),
        "value_grad": ((s, x, x, *lengths, *x.stride() * 2), {**product, "BLOCK_N": 64, "BLOCK_D": 64}),
        "probability_grad": ((x, x, s, *lengths, *x.stride() * 2), {**scores, **product}),
        "dropout_backward": ((s, keep, 0.1, *lengths), scores),
        "softmax_backward": ((s, s, s, 4 * 8 * 1024, 1024), rows),
        "query_grad": ((s, x, x, 0.125, *lengths, *x.stride() * 2), {**product, "BLOCK_M": 64, "BLOCK_D": 64}),
        "key_grad": ((s, x, x, 0.125, *lengths, *x.stride() * 2), {**product, "BLOCK_N": 64, "BLOCK_D": 64}),
    }[name]
    warps = 8 if "softmax" in name else 4
    kernel = getattr(standard_attention, f"{name}_kernel")
    return simulator.compile_report(kernel, *args, device=device, num_warps=warps, **constants)


PRODUCTS = ["scores", "output", "value_grad", "probability_grad", "query_grad", "key_grad"]
OTHERS = ["mask", "softmax", "dropout", "dropout_backward", "softmax_backward"]


@pytest.mark.parametrize("device", DEVICES.values())
@pytest.mark.parametrize("name", PRODUCTS + OTHERS)
def test_standard_kernels_compile_and_fit(name, device):
    compiled = compile_standard(name, device)
    assert compiled.fits
    assert compiled.spill_bytes == 0
    assert compiled.uses_tensor_cores == (name in PRODUCTS)


@pytest.mark.parametrize("device", DEVICES.values())
def test_softmax_and_matmul_kernels_compile_and_fit(device):
    x = tensor(1024, 1024)
    for kernel in (softmax.softmax_kernel, softmax.online_softmax_kernel):
        assert simulator.compile_report(kernel, x, x, 1024, *x.stride() * 2, device=device, BLOCK_N=1024).fits
    compiled = simulator.compile_report(
        matmul.matmul_kernel, x, x, x, 1024, 1024, 1024, *x.stride() * 3, device=device,
        BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, GROUP_M=8, PRECISION="tf32", num_warps=8,
    )  # fmt: skip
    assert compiled.fits
    assert compiled.uses_tensor_cores
    assert compiled.spill_bytes == 0
    assert compiled.main_loop.flops_per_iteration == 2 * 128 * 128 * 32


ADAMW_SCALARS = 9


@pytest.mark.parametrize("device", DEVICES.values())
def test_fused_adamw_compiles_and_moves_wide_words(device):
    x, low = tensor(4096, dtype=torch.float32), tensor(4096)
    compiled = simulator.compile_report(
        adamw.adamw_kernel, x, low, x, x, low, 4096, *[0.5] * ADAMW_SCALARS, device=device, BLOCK=1024
    )
    assert compiled.fits
    assert compiled.spill_bytes == 0
    assert set(compiled.loads_by_width) == {"LDG 16 B"}
    assert set(compiled.stores_by_width) == {"STG 16 B"}
    assert not [w for w in compiled.warnings if "narrow" in w]


@pytest.mark.parametrize("compute_capability", DEVICES)
def test_fused_adamw_rounds_where_the_reference_does(compute_capability):
    """As it is launched: products and sums are rounded apart; with the compiler's default they would not be."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fp32, low = [0, 2, 3], [1, 4]
    names = adamw.adamw_kernel.arg_names
    types = {names[i]: "*fp32" for i in fp32} | {names[i]: "*bf16" for i in low} | {"num_elements": "i32"}
    types |= {name: "constexpr" if name == "BLOCK" else "fp32" for name in names if name not in types}
    source = ASTSource(adamw.adamw_kernel, {name: types[name] for name in names}, constexprs={"BLOCK": 1024})
    ptx = {
        fused: triton.compile(
            source, target=GPUTarget("cuda", compute_capability, 32), options={"enable_fp_fusion": fused}
        ).asm["ptx"]
        for fused in (False, True)
    }
    assert "fma.rn" not in ptx[False]
    assert "fma.rn" in ptx[True]
    assert "sqrt.rn.f32" in ptx[False]
    assert "div.rn.f32" in ptx[False]


def four_bit_weight(num_weights: int) -> tuple[torch.Tensor, ...]:
    """Packed codes, scales and levels."""
    float32 = {"dtype": torch.float32}
    return tensor(num_weights // 2, 1, dtype=torch.uint8), tensor(num_weights // 64, **float32), tensor(16, **float32)


@pytest.mark.parametrize(("device", "block_size"), [("A100", 64), ("H100", 64), ("H100", 4096), ("B200", 64)])
def test_kernels_that_quantize_and_dequantize_compile_and_move_wide_words(device, block_size):
    n = 4096 * 64
    (packed, absmax, code), w = four_bit_weight(n), tensor(n)
    constants = {"device": device, "BLOCK_SIZE": block_size, "NUM_BLOCKS": max(1, 2048 // block_size)}
    for compiled in (
        simulator.compile_report(nf4.quantize_kernel, w, code, packed, absmax, n, n // 2, -(2**60), **constants),
        simulator.compile_report(nf4.dequantize_kernel, packed, absmax, code, w, n, n // 2, **constants),
    ):
        assert compiled.fits
        assert compiled.spill_bytes == 0
        assert not [w for w in compiled.warnings if "narrow" in w]


@cache
def compile_four_bit_matmul(num_rows: int, inner: int, dtype: torch.dtype, device: str):
    """The product with a 4-bit weight of 4,096 rows, in the tiles that are chosen for these rows of x."""
    cut = choose_tiles(num_rows, inner, 64, dtype)
    x, y, bias = tensor(num_rows, inner, dtype=dtype), tensor(num_rows, 4096, dtype=dtype), tensor(4096, dtype=dtype)
    return cut, simulator.compile_report(
        nf4.dequantize_matmul_kernel, x, *four_bit_weight(4096 * inner), bias, y, num_rows, 4096, inner,
        *x.stride(), *y.stride(), device=device, BLOCK_SIZE=64, BLOCK_M=cut.block_m, BLOCK_N=cut.block_n,
        BLOCK_K=cut.block_k, GROUP_M=8, WHOLE_BLOCKS=inner % 64 == 0, HAS_BIAS=True,
        PRECISION="ieee" if dtype is torch.float32 else "tf32", num_warps=cut.num_warps,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES.values())
@pytest.mark.parametrize("num_rows", [1, 128, 512])
def test_products_with_4_bit_weights_keep_everything_in_registers(num_rows, device):
    cut, compiled = compile_four_bit_matmul(num_rows, 4096, torch.bfloat16, device)
    assert compiled.shared_bytes <= SMALLEST_SHARED_BYTES
    assert compiled.uses_tensor_cores
    assert compiled.spill_bytes == 0
    assert not [w for w in compiled.warnings if "narrow" in w]
    assert compiled.main_loop.source_dot_flops == 2 * cut.block_m * cut.block_n * cut.block_k
    assert compiled.main_loop.mix["async copies"] > 0  # the next codes and rows of x are on their way


@pytest.mark.parametrize(("inner", "dtype"), [(4096, torch.float32), (4000, torch.bfloat16)], ids=str)
def test_products_in_fp32_and_of_rows_that_are_not_whole_blocks_compile(inner, dtype):
    _, compiled = compile_four_bit_matmul(512, inner, dtype, "H100")
    assert compiled.spill_bytes == 0
    assert compiled.uses_tensor_cores == (dtype is torch.bfloat16)  # they would round fp32 to TF32


def test_kernels_import_triton_and_nothing_else(repository):
    files = sorted((repository / "kernels").glob("*.py"))
    assert [f.stem for f in files] == [
        "__init__", "adamw", "flash_attention", "matmul", "nf4", "softmax", "standard_attention",
    ]  # fmt: skip
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"triton", "triton.language"}, file
            assert not isinstance(node, ast.ImportFrom), file
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{file}: {node.name} does not fit a screen"
    assert (repository / "cme295lab/kernels").readlink().as_posix() == "../kernels"
