"""Ways to know how much memory tensors hold that have nothing to do with the timeline."""

import ctypes
from collections.abc import Iterable

from torch import Tensor

_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallocInfo(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_size_t) for name in _FIELDS)]


def allocated_bytes() -> int:
    """What the C library has handed out to this process: tensors on the CPU, and all else."""
    library = ctypes.CDLL("libc.so.6")
    library.mallinfo2.restype = _MallocInfo
    info = library.mallinfo2()
    return info.uordblks + info.hblkhd


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """The sum of the storages of strided tensors; a storage that several share counts once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
