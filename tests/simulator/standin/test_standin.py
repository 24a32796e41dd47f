"""Where there is no Triton, kernels get a stand-in, and nobody else does. Each test is a process without Triton."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.fixture
def without_triton(repository: Path, tmp_path: Path):
    """Runs a script in a process without Triton and returns what it prints."""

    def run(script: str, **files: str) -> str:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path = path.with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        folders = [str(repository / "tests" / "without_triton"), str(repository)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
        command = [sys.executable, "-W", "error", "script.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


KERNEL = """
    import cme295lab
    import torch
    import triton
    import triton.language as tl
    from cme295lab import simulator

    SCALE = tl.constexpr(2)

    @triton.jit
    def kernel(x_ptr, out_ptr, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n).to(KIND)
        tl.store(out_ptr + i, (x * SCALE).to(tl.float32), mask=i < n)

    x, out = torch.arange(100.0), torch.empty(100)
"""


def test_a_kernel_runs_unchanged(without_triton):
    script = (
        KERNEL
        + """
    with simulator.trace() as t:
        kernel[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](x, out, 100, KIND=tl.float16, BLOCK=32)
    assert torch.equal(out, 2 * x)
    print(t.tensors["x"].read_bytes, t.launches[0].num_programs)
    """
    )
    assert without_triton(script) == "400 4\n"


def test_autotuned_and_heuristic_kernels_run(without_triton):
    script = (
        KERNEL
        + """
    configs = [triton.Config({"BLOCK": size}, num_warps=8) for size in (64, 16)]

    def prune(configs, given, **options):
        assert given["n"] == 100 and options["KIND"] == tl.float32
        return configs[1:]

    tuned = triton.autotune(configs, key=["n"], prune_configs_by={"early_config_prune": prune})(kernel)
    best = triton.autotune(configs, ["n"], {"perf_model": lambda BLOCK, **_: BLOCK, "top_k": 1})(kernel)
    guessed = triton.heuristics({"BLOCK": lambda given: triton.next_power_of_2(given["n"])})(kernel)
    with simulator.trace() as t:
        for each in (tuned, best, guessed):
            each[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](x, out, 100, KIND=tl.float32)
    print([launch.num_programs for launch in t.launches], t.launches[0].config)
    """
    )
    assert without_triton(script) == ("[7, 7, 1] BLOCK: 16, num_warps: 8, num_ctas: 1, num_stages: 3, maxnreg: None\n")


def test_a_launch_elsewhere_says_where_it_can_run(without_triton):
    script = (
        KERNEL
        + """
    for launch in (lambda: kernel[(4,)](x, out, 100, tl.float32, 32), lambda: kernel.warmup(x, out, 100, grid=(4,))):
        try:
            launch()
        except simulator.SimulatorError as error:
            print(error)
    try:
        simulator.compile_report(kernel, x, out, 100, KIND=tl.float32, BLOCK=32)
    except simulator.SimulatorError as error:
        print(error)
    try:
        tl.load(x)
    except RuntimeError as error:
        print(error)
    try:
        kernel(x)
    except RuntimeError as error:
        print(error)
    """
    )
    lines = without_triton(script).splitlines()
    assert lines[0] == lines[1]
    assert "with simulator.enabled()" in lines[0]
    assert "WSL 2" in lines[0]
    assert "a compile report needs Triton's compiler" in lines[2]
    assert lines[3] == "tl.load works only inside a kernel (a function decorated with @triton.jit)"
    assert lines[4] == "kernel is a kernel: launch it as kernel[grid](...)"


def test_torch_sees_no_triton_and_compiles_for_the_cpu(without_triton):
    script = (
        KERNEL
        + """
    import importlib.util
    import sys
    import warnings

    from torch.utils import _triton as probe

    with simulator.enabled():
        kernel[(4,)](x, out, 100, KIND=tl.float32, BLOCK=32)
    assert importlib.util.find_spec("triton") is None and not sys.modules.get("triton")
    assert not [name for name in sys.modules if name.startswith("triton.")]
    assert not probe.has_triton_package() and not probe.has_triton()
    import torch._inductor.runtime.triton_compat as compat
    import torch.utils.flop_counter

    assert not compat.HAS_TRITON
    warnings.simplefilter("ignore")  # torch's own, about itself
    compiled = torch.compile(lambda a: torch.sin(a) + 1, backend="aot_eager")  # "inductor" runs a C++ compiler: 30 s
    assert torch.equal(compiled(x), torch.sin(x) + 1)
    print("done")
    """
    )
    assert without_triton(script) == "done\n"


def test_installed_packages_see_it_only_if_told(without_triton):
    script = """
    import sys
    sys.path.insert(0, "site-packages")
    import cme295lab
    import prober
    assert not prober.found
    from cme295lab.simulator import standin
    standin.show_to("shown")
    import shown.kernels
    print(shown.kernels.tl.float32)
    """
    probing = "try:\n    import triton\n    found = True\nexcept ImportError:\n    found = False\n"
    shown = "import triton.language as tl\n"
    files = {"site-packages__prober": probing, "site-packages__shown__kernels": shown}
    assert without_triton(script, **files) == "fp32\n"


def test_what_needs_the_compiler_is_not_there(without_triton):
    script = """
    import cme295lab
    try:
        import triton.compiler
    except ModuleNotFoundError as error:
        print(error.name, "|", error)
    try:
        from triton.language import no_such_function
    except ImportError as error:
        print(error)
    from triton.language.extra import libdevice
    from triton.tools.tensor_descriptor import TensorDescriptor
    """
    lines = without_triton(script).splitlines()
    assert lines[0].startswith("triton.compiler | No module named 'triton.compiler': there is no Triton here")
    assert "cannot import name 'no_such_function' from 'triton.language'" in lines[1]


def test_warnings_still_point_at_who_imports(without_triton):
    """A step more in every import must not move what `stacklevel` means."""
    script = """
    import warnings

    import cme295lab
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import deprecated
    print(caught[0].filename.rsplit("/", 1)[-1], caught[0].lineno)
    """
    warn = "import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)\n"
    assert without_triton(script, deprecated=warn) == "script.py 7\n"


def test_constants_behave_as_triton_s(without_triton):
    script = """
    import cme295lab
    import triton.language as tl
    n = tl.constexpr(64)
    assert (n * 2).value == 128 and (2 ** n).value == 2**64 and n // 8 == 8 and bool(n > 63) and range(n)[-1] == 63
    assert tl.float16 == tl.dtype("fp16") != tl.bfloat16 and len({tl.float16, tl.dtype("fp16")}) == 1
    assert tl.float16.is_fp16() and tl.int8.primitive_bitwidth == 8 and str(tl.float8e5) == "fp8e5"
    assert {"load", "float32", "constexpr", "sort"} <= set(dir(tl))
    print(repr(n), repr(tl.float32))
    """
    assert without_triton(script) == "constexpr[64] triton.language.fp32\n"


@pytest.mark.needs_triton
def test_an_installed_triton_wins():
    script = (
        "import builtins; before = builtins.__import__; import cme295lab, triton\n"
        "from cme295lab.simulator import frontend\n"
        "print(builtins.__import__ is before, 'standin' in triton.__version__, frontend.available())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True False True\n"


@pytest.mark.needs_triton
def test_the_stand_in_has_what_triton_s_public_modules_have(without_triton):
    """Names of Triton's modules that are missing here are those that need a compiler, or that the simulator lacks."""
    import triton
    import triton.language as tl

    script = """
    import cme295lab
    import triton
    import triton.language as tl
    print(*dir(triton))
    print(*dir(tl))
    """
    ours, language = (set(line.split()) for line in without_triton(script).splitlines())
    needs_compiler = {
        "AsyncCompileMode", "CompilationError", "FutureKernel", "InterpreterError", "MockTensor", "TensorWrapper",
        "TritonError", "compile", "max_shared_mem", "must_use_result", "reinterpret",
    }  # fmt: skip
    assert set(triton.__all__) - ours <= needs_compiler
    not_simulated = {
        "atomic_load", "atomic_poll", "atomic_store", "condition", "constexpr_type", "dot_scaled", "expect_zero",
        "histogram", "map_elementwise", "pi32_t", "target_info", "tensor_descriptor", "load_tensor_descriptor",
        "store_tensor_descriptor", "make_tensor_descriptor", "make_block_ptr",
    }  # fmt: skip
    assert set(tl.__all__) - language <= not_simulated
