"""Functions and results on their way between processes, as bytes.

``cloudpickle`` sends functions and classes by value that were defined in a notebook's cells or in a script. It forgets
one thing, the name of the file that the code came from, so that a traceback would name no cell; ``dumps`` keeps it.
"""

from __future__ import annotations

import io
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any, ClassVar

import cloudpickle


def dumps(value: object) -> bytes:
    """Turn anything that `cloudpickle` can send into bytes; code keeps the name of its file."""
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def loads(data: bytes) -> Any:
    """Make the value from its bytes."""
    return cloudpickle.loads(data)


def dump_call(fn: Callable[..., Any], args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    """Turn a call into bytes.

    Args:
        fn: the function.
        args: its positional arguments.
        kwargs: its named arguments.

    Returns:
        Bytes from which `loads` makes (fn, args, kwargs).

    Raises:
        TypeError: one of them cannot be sent; it says which.
    """
    try:
        return dumps((fn, args, kwargs))
    except Exception as error:
        named = {"fn": fn, **{f"argument {index} of fn": value for index, value in enumerate(args)}}
        for name, value in {**named, **{f"argument {key} of fn": value for key, value in kwargs.items()}}.items():
            reason = _why_not(value)
            if reason:
                raise TypeError(
                    f"{name} (of type {type(value).__qualname__}) cannot be sent to another process: {reason}. Make "
                    "it, or what it refers to, inside the function"
                ) from error
        raise TypeError(f"the function and its arguments cannot be sent to another process: {error}") from error


def _why_not(value: object) -> str:
    try:
        dumps(value)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    builder, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _build_code, (builder, arguments, code.co_filename)


def _build_code(builder: Callable[..., CodeType], arguments: Sequence[Any], file: str) -> CodeType:
    return builder(*arguments).replace(co_filename=file)


class _Pickler(cloudpickle.Pickler):
    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)

    def reducer_override(self, obj: Any) -> Any:
        """Modules go by name, those of a class of their own, too: `dist` and a variable `config` mean such a one."""
        if isinstance(obj, ModuleType):
            return cloudpickle.Pickler.dispatch_table[ModuleType](obj)
        return super().reducer_override(obj)
