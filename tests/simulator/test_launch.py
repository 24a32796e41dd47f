"""From `kernel[grid](...)` to programs: the hook, arguments, grids, autotuned kernels."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from cme295lab import simulator
from cme295lab.simulator import OutOfBoundsError, SimulatorError, UnsupportedFeatureError, launch

FACTOR = tl.constexpr(3)
KIND = tl.constexpr(tl.float32)


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < n
    tl.store(out_ptr + place, tl.load(x_ptr + place, mask=mask) + tl.load(y_ptr + place, mask=mask), mask=mask)


def add(kernel=add_kernel, n=100, **constants):
    x, y, out = torch.randn(n), torch.randn(n), torch.zeros(n)
    kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, out, n, **constants)
    assert torch.equal(out, x + y)


def test_launches_are_patched_only_inside_and_restored():
    original = JITFunction.run
    assert not simulator.is_enabled()
    with simulator.enabled():
        assert simulator.is_enabled()
        assert JITFunction.run is not original
        add(BLOCK=32)
        with simulator.trace() as t:
            add(BLOCK=32)
            with simulator.enabled():
                add(BLOCK=16)
        assert len(t.launches) == 2
        assert simulator.is_enabled()
        add(BLOCK=8)
    assert not simulator.is_enabled()
    assert JITFunction.run is original


def test_launches_are_restored_after_an_error():
    original = JITFunction.run
    with pytest.raises(OutOfBoundsError), simulator.trace() as t:
        add_kernel[(9,)](torch.zeros(1), torch.zeros(1), torch.zeros(1), 99, BLOCK=8)
    with pytest.raises(KeyError), simulator.enabled(), simulator.trace():
        raise KeyError("mine")
    assert JITFunction.run is original
    assert not simulator.is_enabled()
    assert t.launches == []


@pytest.mark.needs_triton
def test_outside_the_simulator_triton_answers():
    with pytest.raises(RuntimeError) as caught:
        add_kernel[(1,)](torch.zeros(8), torch.zeros(8), torch.zeros(8), 8, BLOCK=8)
    assert not isinstance(caught.value, SimulatorError)


def test_a_warm_up_runs_nothing():
    out = torch.zeros(8)
    with simulator.enabled():
        add_kernel.warmup(torch.ones(8), torch.ones(8), out, 8, BLOCK=8, grid=(1,))
    assert (out == 0).all()


def test_compiler_options_change_nothing():
    with simulator.enabled():
        add(BLOCK=32, num_warps=8, num_stages=4, num_ctas=1, maxnreg=128)


@triton.jit
def grid_kernel(out_ptr, BX: tl.constexpr, BY: tl.constexpr):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(axis=2)
    nx, ny, nz = tl.num_programs(0), tl.num_programs(1), tl.num_programs(2)
    tl.store(out_ptr + (z * ny + y) * nx + x, x + 10 * y + 100 * z + 1000 * nx + 10000 * ny + 100000 * nz)


@pytest.mark.parametrize("grid", [(3,), [4], (3, 2), (2, 3, 4), (1, 1, 2), 5, lambda meta: (meta["BX"], meta["BY"])])
def test_grids(grid):
    sizes = grid({"BX": 2, "BY": 3}) if callable(grid) else grid
    nx, ny, nz = (*(sizes if isinstance(sizes, tuple | list) else (sizes,)), 1, 1)[:3]
    out = torch.zeros(nz, ny, nx, dtype=torch.int32)
    with simulator.trace() as t:
        grid_kernel[grid](out, BX=2, BY=3)
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in (nz, ny, nx)), indexing="ij")
    assert torch.equal(out.long(), x + 10 * y + 100 * z + 1000 * nx + 10000 * ny + 100000 * nz)
    assert t.launches[0].grid == (nx, ny, nz)
    assert t.launches[0].num_programs == nx * ny * nz


@pytest.mark.parametrize("grid", [(), (1, 2, 3, 4), (1.5,), "3", (-1,), None, (None,), lambda meta: "x"])
def test_a_wrong_grid_is_an_error(grid):
    with pytest.raises(SimulatorError, match="the grid must be one to three non-neg"), simulator.enabled():
        grid_kernel[grid](torch.zeros(9, dtype=torch.int32), BX=1, BY=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), {}), "missing a required argument: 'x_ptr'.*its parameters are x_ptr, y_ptr, out_ptr, n, BLOCK"),
        (((1, 2, 3, 4, 5, 6), {}), "too many positional arguments"),
        (((1, 2, 3, 4), {}), "missing a required argument: 'BLOCK'"),
        (((1, 2, 3, 4), {"BLOCK": 4, "n": 3}), "multiple values for argument 'n'"),
        (((1, 2, 3, 4), {"BLOCK": 4, "BLOK": 8}), "unexpected keyword argument 'BLOK'"),
    ],
)
def test_wrong_arguments_are_an_error(arguments, message):
    args, kwargs = arguments
    with pytest.raises(SimulatorError, match=message), simulator.enabled():
        add_kernel[(1,)](*args, **kwargs)


def test_arguments_that_no_kernel_takes_are_an_error():
    x = torch.zeros(8)
    with simulator.enabled():
        with pytest.raises(UnsupportedFeatureError, match="argument 'n' of type dict"):
            add_kernel[(1,)](x, x, x, {}, BLOCK=8)
        with pytest.raises(SimulatorError, match="'x_ptr' is on meta; put all tensors on the CPU"):
            add_kernel[(1,)](x.to("meta"), x, x, 8, BLOCK=8)
        with pytest.raises(SimulatorError, match=r"argument 'x' has dtype torch.complex64"):
            add_kernel[(1,)](x.to(torch.complex64), x, x, 8, BLOCK=8)


@triton.jit
def argument_types_kernel(out_ptr, value, CODE: tl.constexpr):
    codes = value.dtype
    tl.static_assert(codes == CODE)
    tl.store(out_ptr, value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (5, tl.int32), (-(2**31), tl.int32), (2**31, tl.int64), (3_000_000_000, tl.int64), (2**40, tl.int64),
        (2**63, tl.uint64), (1.5, tl.float32), (1e300, tl.float32), (1e-42, tl.float32), (True, tl.int1),
    ],
)  # fmt: skip
def test_numbers_have_the_types_of_a_launch(value, kind):
    out = torch.zeros(1, dtype=torch.float64 if isinstance(value, float) else torch.uint64)
    with simulator.enabled():
        argument_types_kernel[(1,)](out, value, CODE=kind)
    if isinstance(value, float):
        assert out.item() == torch.tensor(value, dtype=torch.float32).item()
    else:
        assert out.item() == value % 2**64


@triton.jit
def apply_kernel(
    out_ptr, x_ptr, FUNCTION: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr = 8, SCALE: tl.constexpr = 2
):
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane).to(DTYPE)
    zero = tl.zeros([BLOCK], DTYPE)
    tl.store(out_ptr + lane, FUNCTION(x, SCALE) * FACTOR + zero.to(KIND))


@triton.jit
def scaled(x, factor):
    return x * factor


@triton.jit
def raised(x, factor: tl.constexpr = 5):
    return x + factor


def test_constants_functions_and_types_as_arguments():
    x, out = torch.arange(8.0), torch.zeros(8)
    with simulator.trace() as t:
        apply_kernel[(1,)](out, x, scaled, tl.float32)
        assert torch.equal(out, x * 6)
        apply_kernel[(1,)](out, x, FUNCTION=raised, DTYPE=tl.float16, SCALE=tl.constexpr(1))
        assert torch.equal(out, (x + 1) * 3)
    assert t.launches[0].constants["BLOCK"] == 8
    assert t.launches[0].constants["SCALE"] == 2
    assert t.launches[1].constants["SCALE"] == 1


def make_kernel(offset):
    shift = tl.constexpr(offset)

    @triton.jit
    def kernel(out_ptr):
        tl.store(out_ptr, shift * 2)

    return kernel


def test_closures():
    out = torch.zeros(1)
    with simulator.enabled():
        for offset in (3, 4):
            make_kernel(offset)[(1,)](out)
            assert out.item() == 2 * offset


@triton.jit
def tuple_kernel(tensors, sizes, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(tensors[0] + lane, tl.load(tensors[1] + lane) * sizes[1] + len(sizes))


def test_tuples_as_arguments():
    out, x = torch.zeros(4), torch.arange(4.0)
    with simulator.enabled():
        tuple_kernel[(1,)]((out, x), (7, 10), BLOCK=4)
    assert out.tolist() == [2, 12, 22, 32]


@triton.jit
def optional_kernel(out_ptr, bias_ptr, BLOCK: tl.constexpr, MODE: tl.constexpr = "double"):
    lane = tl.arange(0, BLOCK)
    x = lane * 1.0
    if bias_ptr is not None:
        x += tl.load(bias_ptr + lane)
    if MODE == "double":
        x *= 2
    tl.store(out_ptr + lane, x)


def test_none_and_text():
    out = torch.zeros(4)
    with simulator.enabled():
        optional_kernel[(1,)](out, None, BLOCK=4)
        assert out.tolist() == [0, 2, 4, 6]
        optional_kernel[(1,)](out, torch.ones(4), BLOCK=4, MODE="plain")
        assert out.tolist() == [1, 2, 3, 4]


CONFIGS = [triton.Config({"BLOCK": 64}, num_warps=8), triton.Config({"BLOCK": 16}, num_stages=2)]
autotuned_kernel = triton.autotune(configs=CONFIGS, key=["n"])(add_kernel)


def drop_large(configs, named_args, **kwargs):
    assert {"x_ptr", "n"} <= {*named_args, *kwargs}
    return [c for c in configs if c.kwargs["BLOCK"] < 64]


pruning = {"early_config_prune": drop_large}
pruned_kernel = triton.autotune(configs=CONFIGS, key=["n"], prune_configs_by=pruning)(add_kernel)
heuristic_kernel = triton.heuristics({"BLOCK": lambda a: 8 if a["n"] < 1000 else 64})(add_kernel)
tuned_heuristic_kernel = triton.autotune(configs=[triton.Config({}, num_warps=2)], key=["n"])(heuristic_kernel)
heuristic_tuned_kernel = triton.heuristics({"EXTRA": lambda a: 1})(autotuned_kernel)


@pytest.mark.parametrize(
    ("kernel", "block", "config"),
    [
        (autotuned_kernel, 64, "BLOCK: 64"), (pruned_kernel, 16, "BLOCK: 16"), (heuristic_kernel, 8, None),
        (tuned_heuristic_kernel, 8, "num_warps: 2"),
    ],
)  # fmt: skip
def test_autotuned_kernels_and_heuristics(kernel, block, config):
    with simulator.trace() as t:
        add(kernel)
    done = t.launches[0]
    assert done.constants["BLOCK"] == block
    assert done.grid == (triton.cdiv(100, block), 1, 1)
    assert done.config is None if config is None else config in done.config
    assert done.kernel == "add_kernel"


seen_by_hook = []
hooked = triton.Config({"BLOCK": 32}, pre_hook=lambda nargs: seen_by_hook.append(nargs["out_ptr"].zero_()))
hooked_kernel = triton.autotune(configs=[hooked], key=["n"])(add_kernel)


def test_the_configuration_s_hook_runs_before_the_launch():
    seen_by_hook.clear()
    with simulator.enabled():
        add(hooked_kernel)
    assert len(seen_by_hook) == 1
    assert hooked_kernel.best_config is hooked  # a launcher may choose the next kernel's blocks by it


@triton.jit
def stages_kernel(out_ptr, num_stages: tl.constexpr):
    for i in tl.range(0, 4, num_stages=num_stages):
        tl.store(out_ptr + i, num_stages)


staged_kernel = triton.autotune(configs=[triton.Config({}, num_stages=3)], key=[])(stages_kernel)


def test_an_option_that_is_a_parameter_too():
    out = torch.zeros(4)
    with simulator.enabled():
        stages_kernel[(1,)](out, num_stages=2)
        assert out.tolist() == [2.0] * 4
        staged_kernel[(1,)](out)
        assert out.tolist() == [3.0] * 4


@pytest.mark.parametrize("budget", [1, 7, 100, 1 << 20])
def test_the_size_of_a_batch_does_not_matter(budget):
    x, y, out = torch.randn(1000), torch.randn(1000), torch.zeros(1000)
    settings = launch.Settings(counting=True, element_budget=budget)
    outcome = launch.launch(add_kernel, (63,), (x, y, out, 1000), {"BLOCK": 16}, settings)
    assert torch.equal(out, x + y)
    assert sum(s.read_elements for s in outcome.storages) == 2000


def test_gradients_are_left_alone():
    x, y = torch.randn(32, requires_grad=True), torch.randn(32)
    out = torch.zeros(32)
    with simulator.enabled():
        add_kernel[(1,)](x, y, out, 32, BLOCK=32)
    assert not out.requires_grad
    assert torch.equal(out, (x + y).detach())


@pytest.mark.needs_triton
def test_kernels_decorated_for_triton_s_interpreter_run_too(tmp_path):
    """TRITON_INTERPRET=1 is read when a kernel is decorated; such kernels are of another class."""
    script = tmp_path / "interpreted.py"
    script.write_text(
        textwrap.dedent("""
            import torch, triton, triton.language as tl
            from cme295lab import simulator

            @triton.jit
            def helper(x):
                return x * 2

            @triton.jit
            def kernel(out_ptr, BLOCK: tl.constexpr):
                lane = tl.arange(0, BLOCK)
                tl.store(out_ptr + lane, helper(lane))

            assert "Interpreted" in type(kernel).__name__
            ours, theirs = torch.zeros(8), torch.zeros(8)
            with simulator.trace() as t:
                kernel[(1,)](ours, BLOCK=8)
            kernel[(1,)](theirs, BLOCK=8)
            assert ours.tolist() == theirs.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
            print(t.launches[0].written_bytes)
        """)
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "32"
