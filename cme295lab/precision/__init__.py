"""Numbers of few bits: what a format holds, and how to train in sixteen bits without losing the run.

Read in this order: ``formats`` (bits, rounding, limits of fp64 down to fp4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.precision.formats.codes import Rounding, all_values, code_dtype, decode, encode, neighbours
    from cme295lab.precision.formats.description import FORMATS, FloatFormat, get_format
    from cme295lab.precision.formats.rounding import Number, describe, describe_code, round_to

_HOME = {
    "FORMATS": "formats.description",
    "FloatFormat": "formats.description",
    "Number": "formats.rounding",
    "Rounding": "formats.codes",
    "all_values": "formats.codes",
    "code_dtype": "formats.codes",
    "decode": "formats.codes",
    "describe": "formats.rounding",
    "describe_code": "formats.rounding",
    "encode": "formats.codes",
    "get_format": "formats.description",
    "neighbours": "formats.codes",
    "round_to": "formats.rounding",
}
_MODULES = ("formats",)

__all__ = [
    "FloatFormat",
    "FORMATS",
    "get_format",
    "encode",
    "decode",
    "code_dtype",
    "all_values",
    "neighbours",
    "Rounding",
    "round_to",
    "describe",
    "describe_code",
    "Number",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
