"""New memory that costs less to touch: large pages, where the system hands them out on request.

A new tensor of 64 MB is 16,384 pages of 4 KB, and the first write to each is a fault that the system answers with a
cleared page. For work as light as dequantising, those faults are most of the time: filling 64 MB of new memory took
54 ms on the machine where this was measured, filling it again 3 ms. In pages of 2 MB there are 32 faults: 10 ms.

Linux has such pages ("transparent huge pages"), and on most systems for those who ask. NumPy asks for every array of
4 MB or more; PyTorch does not, unless told to. It is a request: what comes of it is the same memory, sooner or later.
Other systems have no such request, and memory there is what it always is.

Source: madvise(2), MADV_HUGEPAGE; Linux, "Transparent Hugepage Support".
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import torch
from torch import Tensor

PAGE_BYTES = 1 << 21
"""A large page on the processors that matter here; where they are larger, the request covers what it covers."""

WORTHWHILE_BYTES = 1 << 22
"""Below this it is not worth asking."""


def empty_in_large_pages(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`, with large pages asked for where it is large and on a Linux CPU."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    advise = _madvise()
    if advise is not None and device.type == "cpu" and tensor.nbytes >= WORTHWHILE_BYTES:
        # Only whole pages inside the tensor: what lies around it is not ours.
        start = -(-tensor.data_ptr() // PAGE_BYTES) * PAGE_BYTES
        end = (tensor.data_ptr() + tensor.nbytes) // PAGE_BYTES * PAGE_BYTES
        # A kernel without large pages answers with an error, which leaves the memory as it is: nothing to do about it.
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _madvise() -> Any:
    """The C library's function; None on systems that have no such request."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
