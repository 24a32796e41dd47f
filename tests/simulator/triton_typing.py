"""The types that the installed Triton's own front end gives to expressions: no GPU, no code generation.

Operators and builtins are called as its code generator calls them, on blocks that are arguments of an empty function.
What Triton writes in its own language (tl.sum, …) is put into a kernel and translated, without compiling further.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, make_backend
from triton.language.semantic import TritonSemantic

from cme295lab.simulator import dtypes
from cme295lab.simulator.dtypes import DType

REFUSED = "refused"
TARGET = GPUTarget("cuda", 90, 32)
SHAPE = (32, 32)
_numbers = itertools.count()


class TritonTyping:
    """Asks the installed Triton for types, by their names."""

    def __init__(self) -> None:
        self.backend = make_backend(TARGET)
        self.options = self.backend.parse_options(
            {
                "enable_fp_fusion": True,  # news of a coming default otherwise
                "supported_fp8_dtypes": tuple(d.name for d in dtypes.ALL if d.is_fp8()),  # of other makers too
            }
        )
        self.codegen = self.backend.get_codegen_implementation(self.options)
        self.context = ir.context()
        ir.load_dialects(self.context)
        self.backend.load_dialects(self.context)
        builder = ir.builder(self.context)
        builder.options, builder.codegen_fns = self.options, self.codegen
        self.semantic = TritonSemantic(builder)
        kinds = {d.name: tl.block_type(tl.dtype(d.name), list(SHAPE)) for d in dtypes.ALL}
        self._module = builder.create_module()
        prototype = builder.get_function_ty([k.to_ir(builder) for k in kinds.values()], [])
        function = builder.get_or_insert_function(self._module, "types", prototype, "public", False)
        self._module.push_back(function)
        builder.set_insertion_point_to_start(function.add_entry_block())
        self.blocks = {name: tl.tensor(function.args(i), kind) for i, (name, kind) in enumerate(kinds.items())}

    def operand(self, x: DType | bool | int | float) -> Any:
        """A block of a type, or a literal."""
        return self.blocks[x.name] if isinstance(x, DType) else tl.constexpr(x)

    def of(self, function: Callable[..., Any], *operands: Any, **options: Any) -> str:
        """The type of `function(*operands)`, a builtin or method of tl.tensor; REFUSED if Triton does not take it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a shift by all bits is taken
                found = function(*map(self.operand, operands), _semantic=self.semantic, **options)
        except Exception:  # Triton's, of any kind: TypeError, ValueError, AssertionError, its own compile errors
            return REFUSED
        return str(found.type.scalar)

    def of_operator(self, name: str, a: Any, b: Any) -> str:
        """The type of `a op b`; `name` is that of Python's method without underscores."""
        if isinstance(a, DType):
            return self.of(getattr(tl.tensor, f"__{name}__"), a, b)
        swapped = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq", "ne": "ne"}
        return self.of(getattr(tl.tensor, f"__{swapped.get(name, 'r' + name)}__"), b, a)

    def of_text(self, module_from: Callable[[str], ModuleType], expression: str, x: DType) -> str:
        """The type of an expression of the block x, by translating a kernel."""
        name = f"types_{next(_numbers)}"
        source = (
            f"@triton.jit\ndef {name}(x_ptr):\n"
            f"    x = tl.load(x_ptr + tl.arange(0, {SHAPE[0]})[:, None] * 32 + tl.arange(0, {SHAPE[1]})[None, :])\n"
            f"    y = {expression}\n    tl.static_print(y.dtype)\n"
        )
        kernel = getattr(module_from(source), name)
        spelled = {d.name: d.name.replace("uint", "u").replace("int", "i") for d in dtypes.ALL}
        translated = ASTSource(kernel, {"x_ptr": f"*{spelled[x.name]}"})
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                translated.make_ir(TARGET, self.options, self.codegen, self.backend.get_module_map(), self.context)
        except Exception:  # as above
            return REFUSED
        return printed.getvalue().strip()
