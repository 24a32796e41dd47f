"""Look at the machine: what of the course runs here, what does not, and what to do about it."""

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from typing import Literal

import psutil

from cme295lab.course import browser
from cme295lab.course.places import CourseError, find_course

State = Literal["ok", "note", "problem"]
MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 6)
TRITON_RANGE = ((3, 6), (3, 9))
MIN_MEMORY_BYTES = 6 * 10**9


@dataclass(frozen=True)
class Reading:
    """One thing that was looked at.

    Args:
        what: its name.
        value: what was found.
        state: `ok`; `note` (something optional is missing); `problem` (the course does not work without it).
        fix: what to do, where the state is not `ok`.
    """

    what: str
    value: str
    state: State = "ok"
    fix: str = ""


def examine() -> list[Reading]:
    """Look at everything the course needs.

    Returns:
        One reading per thing, in the order in which problems should be put right.
    """
    return [_python(), _torch(), _triton(), _accelerator(), _cores(), _processes(), _memory(), _course(), _browser()]


def what_runs_where(readings: list[Reading]) -> list[str]:
    """Say in plain sentences what will run on this machine, and on what.

    Args:
        readings: result of `examine`.

    Returns:
        Sentences.
    """
    found = {reading.what: reading for reading in readings}
    if any(found[what].state == "problem" for what in ("Python", "PyTorch")):
        return ["Nothing of the course runs here until the problems above are put right."]
    lines = ["Notebooks, exercises and their checks run on the CPU."]
    if found["Triton"].state != "ok":
        lines.append(
            "Triton kernels run in the simulator on the CPU, where their traffic is counted. Compile reports and "
            "launches on a GPU need Triton itself; see above."
        )
    elif found["GPU"].state == "ok":
        lines.append(
            f"Triton kernels run on {found['GPU'].value}, and in the simulator, where their traffic is counted."
        )
    else:
        lines.append(
            "Triton kernels run in the simulator on the CPU, where their traffic is counted. No GPU is needed."
        )
    return lines


def _python() -> Reading:
    if sys.version_info >= MIN_PYTHON:
        return Reading("Python", platform.python_version())
    return Reading("Python", platform.python_version(), "problem", "install Python 3.11 or newer, then `make setup`")


def _torch() -> Reading:
    version = _installed("torch")
    if version is None:
        return Reading("PyTorch", "not installed", "problem", "`make setup`")
    if _numbers(version) < MIN_TORCH:
        return Reading("PyTorch", version, "problem", "`pip install --upgrade torch` (2.6 or newer)")
    return Reading("PyTorch", version)


def _triton() -> Reading:
    version = _installed("triton")
    low, high = (".".join(map(str, bound)) for bound in TRITON_RANGE)
    if version is None and platform.system() != "Linux":
        value = f"no wheels for {platform.system()}: kernels run in the simulator, with a stand-in for its language"
        return Reading("Triton", value, "note", "use Linux, WSL or a container for compile reports and GPUs")
    if version is None:
        return Reading("Triton", "not installed", "problem", f"`pip install 'triton>={low}'`")
    if not TRITON_RANGE[0] <= _numbers(version) <= TRITON_RANGE[1]:
        fix = f"`pip install 'triton>={low},<={high}.9'`"
        return Reading("Triton", f"{version}, tested are {low} to {high}", "note", fix)
    return Reading("Triton", version)


def _accelerator() -> Reading:
    if _installed("torch") is None:
        return Reading("GPU", "unknown without PyTorch", "note", "`make setup`")
    import torch  # slow to import: only where the answer is wanted

    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
        return Reading("GPU", f"{torch.cuda.device_count()} x {', '.join(names)} (CUDA {torch.version.cuda})")
    if torch.version.cuda is None:
        fix = "nothing to do, unless this machine has an NVIDIA GPU: then install PyTorch's CUDA build"
        return Reading("GPU", "none (this PyTorch is a CPU build)", "note", fix)
    fix = "nothing to do, unless this machine has an NVIDIA GPU: then check its driver with `nvidia-smi`"
    return Reading("GPU", "none that PyTorch sees", "note", fix)


def _cores() -> Reading:
    affinity = getattr(os, "sched_getaffinity", None)
    num_cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if num_cores >= 2:
        return Reading("CPU cores", str(num_cores))
    return Reading("CPU cores", str(num_cores), "note", "it works, slowly: stated times are for two cores")


def _processes() -> Reading:
    if _installed("torch") is None:
        return Reading("Processes", "unknown without PyTorch", "note", "`make setup`")
    import torch.distributed as dist

    from cme295lab.parallel.launch import pool

    if why := pool.why_no_processes():
        return Reading("Processes", "none can be started: labs on several processes will not run", "note", why)
    backends = [name for name in ("gloo", "nccl") if dist.is_available() and getattr(dist, f"is_{name}_available")()]
    if "gloo" not in backends:
        fix = "install PyTorch from its own wheels: labs on several processes use gloo"
        return Reading("Processes", "this PyTorch has no gloo", "note", fix)
    return Reading("Processes", f"by {pool.start_method()}, torch.distributed with {' and '.join(backends)}")


def _memory() -> Reading:
    memory = psutil.virtual_memory()
    value = f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"
    if memory.available >= MIN_MEMORY_BYTES:
        return Reading("Memory", value)
    fix = f"close programs until {MIN_MEMORY_BYTES / 1e9:.0f} GB are free, or run with `--profile fast`"
    return Reading("Memory", value, "note", fix)


def _course() -> Reading:
    try:
        course = find_course()
    except CourseError as error:
        return Reading("Course", "not found", "problem", str(error))
    num_notebooks = len(course.notebooks())
    if not num_notebooks:
        return Reading("Course", f"{course.root}, no notebooks", "problem", "`make notebooks`")
    return Reading("Course", f"{course.root}, {num_notebooks} notebooks")


def _browser() -> Reading:
    found = browser.find_browser()
    if found:
        return Reading("Chromium", str(found))
    return Reading("Chromium", "none: browser tests will not run (the course will)", "note", browser.HOW_TO_GET_ONE)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)
