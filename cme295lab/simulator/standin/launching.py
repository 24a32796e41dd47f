"""Decorators of kernels: `triton.jit`, `triton.autotune`, `triton.heuristics`, and the objects they make.

The attributes are those of Triton's objects that programs (and `simulator.frontend`) look at. `run` only says where a
kernel can run: inside `simulator.enabled()` or `trace()` the front end puts another one in its place, as it does with
Triton's.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from cme295lab.simulator.errors import SimulatorError

_HOW_TO_RUN = (
    "there is no Triton here (it has packages for Linux only), so kernels run in the simulator: launch inside "
    "`with simulator.enabled():` or `with simulator.trace() as t:` (from cme295lab import simulator). For launches on "
    "a GPU and compile reports use Linux, or WSL 2"
)


class KernelInterface:
    """Whatever can be launched as `kernel[grid](...)`."""

    __module__ = "triton.runtime.jit"
    fn: Any

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.run(*args, grid=grid, warmup=False, **kwargs)

    def run(self, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        """Say how to launch a kernel here."""
        self._refuse()

    def warmup(self, *args: Any, grid: Any, **kwargs: Any) -> Any:
        """Compile without launching; there is nothing to compile with."""
        return self.run(*args, grid=grid, warmup=True, **kwargs)

    def _refuse(self) -> NoReturn:
        raise SimulatorError(f"kernel {_function(self).__name__!r} was launched outside the simulator; {_HOW_TO_RUN}")


def _function(kernel: Any) -> Callable[..., Any]:
    """The Python function inside decorators."""
    return kernel if inspect.isfunction(kernel) else _function(kernel.fn)


class KernelParam:
    """A parameter of a jit function."""

    __module__ = "triton.runtime.jit"

    def __init__(self, num: int, parameter: inspect.Parameter) -> None:
        self.num = num
        self.name = parameter.name
        self.default = parameter.default
        self.has_default = parameter.default is not inspect.Parameter.empty
        given = parameter.annotation
        self.annotation = (
            "" if given is inspect.Parameter.empty else given if isinstance(given, str) else given.__name__
        )
        self.is_constexpr = "constexpr" in self.annotation


class JITFunction(KernelInterface):
    """A function decorated with @triton.jit."""

    __module__ = "triton.runtime.jit"
    run = KernelInterface.run  # of its own: the front end replaces it, class by class

    def __init__(self, fn: Callable[..., Any], **options: Any) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn
        self.signature = inspect.signature(fn)
        self.params = [KernelParam(i, p) for i, p in enumerate(self.signature.parameters.values())]
        self.arg_names = [p.name for p in self.params]
        self.constexprs = [p.num for p in self.params if p.is_constexpr]
        self.noinline = bool(options.get("noinline", False))
        self.debug = options.get("debug")
        self.do_not_specialize = options.get("do_not_specialize") or []
        self.pre_run_hooks: list[Callable[..., Any]] = []
        self.device_caches: dict[Any, Any] = {}

    @functools.cached_property
    def src(self) -> str:
        """The text of the function, from `def` on."""
        text = textwrap.dedent(inspect.getsource(self.fn))
        return text[text.index("def ") :]

    def add_pre_run_hook(self, hook: Callable[..., Any]) -> None:
        """Call `hook` with a launch's arguments before it."""
        self.pre_run_hooks.append(hook)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{self.fn.__name__} is a kernel: launch it as {self.fn.__name__}[grid](...)")

    def __repr__(self) -> str:
        return f"JITFunction({self.fn.__module__}:{self.fn.__qualname__})"


def jit(fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`@triton.jit` or `@triton.jit(...)`; the options are for a compiler."""
    return JITFunction(fn, **options) if fn is not None else lambda function: JITFunction(function, **options)


class ConstexprFunction:
    """A plain Python function that kernels may call on compile-time values."""

    __module__ = "triton.runtime.jit"

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn, updated=())
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain = [getattr(a, "value", a) for a in args]
        return self.fn(*plain, **{k: getattr(v, "value", v) for k, v in kwargs.items()})


class Config:
    """One choice of an autotuner: meta-parameters, options of the compiler, a function to call before a launch."""

    __module__ = "triton.runtime.autotuner"

    def __init__(
        self,
        kwargs: dict[str, Any],
        num_warps: int = 4,
        num_stages: int = 3,
        num_ctas: int = 1,
        maxnreg: int | None = None,
        pre_hook: Callable[..., Any] | None = None,
        ir_override: str | None = None,
    ) -> None:
        self.kwargs = kwargs
        self.num_warps, self.num_stages, self.num_ctas = num_warps, num_stages, num_ctas
        self.maxnreg, self.pre_hook, self.ir_override = maxnreg, pre_hook, ir_override

    def all_kwargs(self) -> dict[str, Any]:
        """Meta-parameters and options, as keywords of a launch."""
        options = ("num_warps", "num_ctas", "num_stages", "maxnreg", "ir_override")
        given = {name: getattr(self, name) for name in options}
        return {**self.kwargs, **{name: value for name, value in given.items() if value is not None}}

    def __str__(self) -> str:
        options = ("num_warps", "num_ctas", "num_stages", "maxnreg")
        shown = {**self.kwargs, **{name: getattr(self, name) for name in options}}
        return ", ".join(f"{name}: {value}" for name, value in shown.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return (*self.all_kwargs().items(), self.pre_hook)


class Autotuner(KernelInterface):
    """A kernel with several configurations to choose from."""

    __module__ = "triton.runtime.autotuner"
    run = KernelInterface.run  # of its own: the front end replaces it, class by class

    def __init__(
        self,
        fn: Any,
        configs: Sequence[Config],
        key: Sequence[str],
        prune_configs_by: Mapping[str, Any] | None = None,
        reset_to_zero: Sequence[str] | None = None,
        restore_value: Sequence[str] | None = None,
        pre_hook: Callable[..., Any] | None = None,
        post_hook: Callable[..., Any] | None = None,
    ) -> None:
        self.fn = fn
        self.base_fn = _function(fn)
        self.arg_names = list(inspect.signature(self.base_fn).parameters)
        self.configs = list(configs) or [Config({})]
        self.keys = list(key)
        self.reset_to_zero, self.restore_value = list(reset_to_zero or []), list(restore_value or [])
        self.pre_hook, self.post_hook = pre_hook, post_hook
        self.nargs: dict[str, Any] | None = None
        self.cache: dict[Any, Config] = {}
        rules = prune_configs_by or {}
        self.early_config_prune = rules.get("early_config_prune")
        self.perf_model = rules.get("perf_model")
        self.configs_top_k = rules.get("top_k", 1.0)

    def prune_configs(self, kwargs: dict[str, Any]) -> list[Config]:
        """The configurations that the kernel's own rules keep for these arguments, best first if there is a model."""
        kept, given = self.configs, self.nargs or {}
        if self.early_config_prune is not None:
            kept = list(self.early_config_prune(self.configs, given, **kwargs))
            if not kept:
                raise ValueError("early_config_prune kept no configuration: it must return at least one")
        if self.perf_model is not None:
            top = self.configs_top_k
            wanted = max(1, int(len(kept) * top)) if isinstance(top, float) and top <= 1 else int(top)
            if len(kept) > wanted:
                model = self.perf_model
                kept = sorted(kept, key=lambda config: model(**given, **kwargs, **config.all_kwargs()))[:wanted]
        return kept


def autotune(configs: Sequence[Config], key: Sequence[str], *args: Any, **options: Any) -> Callable[[Any], Autotuner]:
    """`@triton.autotune`: in the simulator the first configuration that the kernel's own pruning keeps is taken."""
    known = ("prune_configs_by", "reset_to_zero", "restore_value", "pre_hook", "post_hook")
    given = {**dict(zip(known, args, strict=False)), **options}
    return lambda fn: Autotuner(fn, configs, key, **{name: given[name] for name in known if name in given})


class Heuristics(KernelInterface):
    """A kernel some of whose meta-parameters are computed from its arguments."""

    __module__ = "triton.runtime.autotuner"
    run = KernelInterface.run  # of its own: the front end replaces it, class by class

    def __init__(self, fn: Any, arg_names: Iterable[str], values: Mapping[str, Callable[..., Any]]) -> None:
        self.fn = fn
        self.arg_names = list(arg_names)
        self.values = dict(values)


def heuristics(values: Mapping[str, Callable[..., Any]]) -> Callable[[Any], Heuristics]:
    """`@triton.heuristics`: a function of the arguments for each meta-parameter."""
    return lambda fn: Heuristics(fn, inspect.signature(_function(fn)).parameters, values)
