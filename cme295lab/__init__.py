"""cme295lab: run what trains large language models, and count what it costs.

Importing the package loads nothing: each room (`simulator`, `hardware`, `attention`, …) is loaded when it is first
named, so `import cme295lab` needs neither PyTorch nor a GPU. `from cme295lab import simulator` and
`cme295lab.simulator` are the same thing. Where Triton is missing (macOS, Windows), `import triton` gives the
simulator's stand-in from then on; see `_triton_imports`.
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType

from cme295lab import _triton_imports

__version__ = "0.1.0"

_triton_imports.stand_in_where_missing()


def __getattr__(name: str) -> ModuleType:
    """Load the room `cme295lab.<name>` at its first use."""
    qualified_name = f"{__name__}.{name}"
    if name.startswith("_") or find_spec(qualified_name) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its rooms are {', '.join(_rooms())}")
    return import_module(qualified_name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_rooms()})


def _rooms() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
