"""Float formats of any width: what their bits mean, and how values are rounded to them.

Read in this order: ``description`` (a format in six numbers, the eleven of the course), ``codes`` (values to codes and
back), ``bits`` (the integer arithmetic under it), ``rounding`` (tensors rounded to a format; one number taken apart).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.precision.formats.bits import Rounding
    from cme295lab.precision.formats.codes import all_values, code_dtype, decode, encode, neighbours
    from cme295lab.precision.formats.description import FORMATS, FloatFormat, get_format
    from cme295lab.precision.formats.rounding import Number, describe, describe_code, round_to

_HOME = {
    "FORMATS": "description",
    "FloatFormat": "description",
    "Number": "rounding",
    "Rounding": "bits",
    "all_values": "codes",
    "code_dtype": "codes",
    "decode": "codes",
    "describe": "rounding",
    "describe_code": "rounding",
    "encode": "codes",
    "get_format": "description",
    "neighbours": "codes",
    "round_to": "rounding",
}
_MODULES = ("bits", "codes", "description", "rounding")

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
