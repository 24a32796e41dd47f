"""The only module that touches Triton: the installed one, or the stand-in where there is none (`standin`).

The simulator has its own reading of the language (`language`, `interpreter`), so what it takes from Triton is small:

* `is_kernel(x)`, `kernel_function(x)` — recognise a jit function and get the Python function behind it;
* `constexpr_names(x)` — which of its parameters are `tl.constexpr`;
* `resolve(x)` — the simulator's counterpart of an object that a kernel's source names: a module, a type, a constant,
  a function;
* `launches_go_to(run)` — while active, `kernel[grid](...)` with CPU tensors calls `run` instead of compiling;
* `unwrap(x)` — the jit function inside autotuners and heuristics.

`import triton` here is either of the two, and nothing below knows which; `available()` alone asks for the real one,
which has a compiler. Of Triton's classes only the three that its public decorators return are touched (and the
interpreter's twin of the first), and of those only `run`, `fn`, and what an autotuner knows of its configurations: the
same in Triton 3.6 to 3.9.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from cme295lab import _triton_imports
from cme295lab.simulator import dtypes
from cme295lab.simulator.errors import SimulatorError, UnsupportedFeatureError

Run = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]


def available() -> bool:
    """Whether the real Triton is installed: its compiler, not just its language."""
    return _triton_imports.is_installed()


def require_triton(what: str = "a compile report") -> None:
    """Raise an error that says what to do where the real Triton is needed and missing."""
    if not available():
        raise SimulatorError(
            f"{what} needs Triton's compiler, and Triton is not installed; it has packages for Linux only. Use Linux, "
            "WSL 2 or a container. Everything else works here: kernels run in the simulator without Triton"
        )


def _is_instance(x: Any, *names: str) -> bool:
    return any(c.__name__ in names and c.__module__.split(".")[0] == "triton" for c in type(x).__mro__)


def is_kernel(x: Any) -> bool:
    """Whether x is a function decorated with @triton.jit (under TRITON_INTERPRET=1 too)."""
    return _is_instance(x, "JITFunction", "InterpretedFunction")


def is_own_kernel(x: Any) -> bool:
    """Whether x is a jit function that does not belong to Triton's own library."""
    return is_kernel(x) and not _is_language(kernel_function(x))


def is_tensor_descriptor(x: Any) -> bool:
    """Whether x is a tensor descriptor made on the host."""
    return _is_instance(x, "TensorDescriptor")


def kernel_function(x: Any) -> Callable[..., Any]:
    """The Python function behind a jit function."""
    function = x.fn
    return function if isinstance(function, types.FunctionType) else kernel_function(function)


def constexpr_names(function: Callable[..., Any]) -> frozenset[str]:
    """The parameters that are compile-time constants."""
    names = []
    for name, annotation in function.__annotations__.items():
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        if "constexpr" in text:
            names.append(name)
    return frozenset(names)


def constant_value(x: Any) -> Any:
    """The value inside a tl.constexpr; anything else as it is."""
    return x.value if _is_instance(x, "constexpr") else x


def is_constant_global(x: Any) -> bool:
    """Whether Triton lets a kernel use this object from outside the kernel."""
    is_triton = _is_instance(x, "constexpr", "dtype", "ConstexprFunction") or _is_language(x) or is_aggregate(x)
    return is_triton or is_kernel(x) or isinstance(x, types.ModuleType) or hasattr(x, "_fields")


def is_compile_time_function(x: Any) -> bool:
    """Whether x was made by `triton.constexpr_function`."""
    return _is_instance(x, "ConstexprFunction")


def call_at_compile_time(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call a Python function on compile-time values, types as Triton's own."""
    return function(*map(_triton_type, args), **{n: _triton_type(v) for n, v in kwargs.items()})


def _triton_type(x: Any) -> Any:
    """Triton's object for one of the simulator's types; anything else as it is."""
    if not isinstance(x, dtypes.DType | dtypes.PointerType):
        return x
    import triton.language as tl

    return tl.dtype(x.name) if isinstance(x, dtypes.DType) else tl.pointer_type(_triton_type(x.element_ty))


def is_aggregate(x: Any) -> bool:
    """Whether x is a class made by `triton.language.core._aggregate`."""
    return isinstance(x, type) and getattr(x, "__triton_builtin__", False) and hasattr(x, "hash_attrs")


def aggregate_fields(cls: Any) -> tuple[str, ...]:
    """The fields of an aggregate, in order."""
    fields = getattr(cls, "__aggregate_fields__", cls.__annotations__)
    if not fields:  # before Triton 3.8 only the methods know the class that was decorated
        fields = inspect.getclosurevars(cls.__setattr__).nonlocals["cls"].__annotations__
    return tuple(fields)


def aggregate_constructor(cls: Any) -> Callable[..., Any] | None:
    """The `__init__` that the author of an aggregate wrote; None if Triton made one."""
    constructor = cls.hash_attrs[0]
    function = constructor.fn if hasattr(constructor, "fn") else constructor
    return None if (getattr(function, "__module__", "") or "").startswith("triton.") else function


def resolve(
    x: Any,
    *,
    native: Callable[[str], Any | None],
    device_library: Callable[[str], Any | None],
    language: Callable[[str], Any],
    kernel: Callable[[Any], Any],
) -> Any:
    """The simulator's counterpart of an object that a kernel refers to.

    Args:
        x: a module, type, constant or function from the kernel's globals or closure.
        native: looks up the simulator's own version of a function of `triton.language` by name.
        device_library: the same for functions of `libdevice`.
        language: what stands for a module of Triton, by the module's name.
        kernel: wraps a jit function so that it can be called from a kernel.
    """
    if isinstance(x, types.ModuleType):
        return language(x.__name__) if x.__name__.split(".")[0] == "triton" else x
    if _is_instance(x, "constexpr"):
        return resolve(x.value, native=native, device_library=device_library, language=language, kernel=kernel)
    if _is_instance(x, "pointer_type"):
        return dtypes.PointerType(dtypes.BY_NAME[x.element_ty.name])
    if _is_instance(x, "dtype"):
        if x.name not in dtypes.BY_NAME:
            raise UnsupportedFeatureError(f"the type tl.{x.name}")
        return dtypes.BY_NAME[x.name]
    if is_kernel(x):
        function = kernel_function(x)
        own = native(function.__name__) if _is_language(function) else None
        return own if own is not None else kernel(function)
    name = getattr(x, "__name__", None)
    if isinstance(name, str) and _is_language(x):
        own = (device_library(name) if x.__module__.endswith("libdevice") else None) or native(name)
        if own is None:
            raise UnsupportedFeatureError(f"tl.{name}")
        return own
    return x


def _is_language(x: Any) -> bool:
    module = getattr(x, "__module__", "") or ""
    return module.startswith("triton.") and ".language" in module


def language_member(path: str) -> Any | None:
    """The object that Triton has under `triton.language.<name>` (or in its submodules), or None."""
    import triton
    import triton.language as tl

    name = path.rsplit(".", 1)[-1]
    for place in (tl, tl.math, tl.standard, triton):
        if hasattr(place, name):
            return getattr(place, name)
    return None


def unwrap(kernel: Any, bound: dict[str, Any], options: dict[str, Any]) -> tuple[Any, dict[str, Any], str | None]:
    """Get through autotuners and heuristics to the jit function.

    Args:
        kernel: what `kernel[grid](...)` was called on.
        bound: positional arguments by name.
        options: keyword arguments of the launch.

    Returns:
        The jit function, the keyword arguments with the chosen meta-parameters, and the text of the autotuner's
        configuration (the first
        one that its own pruning keeps: there is no GPU to time them on), or None.
    """
    config = None
    while not is_kernel(kernel):
        if _is_instance(kernel, "Autotuner"):
            kernel.nargs = bound
            chosen = kernel.prune_configs(options)[0]
            kernel.nargs = None
            options = {**options, **chosen.all_kwargs()}
            config, kernel.best_config = str(chosen), chosen  # launchers look at it, as in Triton
            if chosen.pre_hook is not None:
                chosen.pre_hook({**bound, **options})
        elif _is_instance(kernel, "Heuristics"):
            for name, rule in kernel.values.items():
                options = {**options, name: rule({**bound, **options})}
        else:
            raise UnsupportedFeatureError(f"launching a {type(kernel).__name__}")
        kernel = kernel.fn
    return kernel, options, config


@contextlib.contextmanager
def launches_go_to(run: Run) -> Iterator[None]:
    """While active, launches with CPU tensors call `run(kernel, grid, args, kwargs)`; others go to Triton. Restored
    on exit."""
    import triton.runtime.autotuner as autotuner
    import triton.runtime.jit as jit

    classes: list[Any] = [jit.JITFunction, autotuner.Autotuner, autotuner.Heuristics]
    with contextlib.suppress(ImportError):
        from triton.runtime.interpreter import InterpretedFunction

        classes.append(InterpretedFunction)
    originals = {c: c.__dict__.get("run") for c in classes}

    def patched(original: Any) -> Any:
        def run_or_compile(self: Any, *args: Any, grid: Any, **kwargs: Any) -> Any:
            if any(getattr(a, "is_cuda", False) for a in (*args, *kwargs.values())):
                return original(self, *args, grid=grid, **kwargs)
            warmup = kwargs.pop("warmup", False)
            return None if warmup else run(self, grid, args, kwargs)

        return run_or_compile

    for c, original in originals.items():
        if original is not None:
            c.run = patched(original)
    try:
        yield
    finally:
        for c, original in originals.items():
            if original is not None:
                c.run = original
