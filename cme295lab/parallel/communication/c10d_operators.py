"""Reads torch.distributed's operators as they are dispatched: who calls what, whoever wrote the code.

Every collective of PyTorch, from Python or from C++ (the reducer of DistributedDataParallel), is an operator of the
namespace ``c10d`` or ``_c10d_functional`` and passes the dispatcher, where a `TorchDispatchMode` sees it before it
runs. `c10d_watch` is such a mode. It translates each operator to a `CollectiveCall` for one watcher.

A dispatch mode belongs to a thread. That is no limit on a CPU, where `backward` runs in the thread that calls it, and
hooks with it. For CUDA tensors autograd works in threads of its own; PyTorch hands them the modes of the thread that
called `backward` (``at::ThreadLocalState``), so they should be seen too; that was not run on a GPU here. Threads that a
program starts itself are not seen. What `transport` calls is announced by itself and seen in any thread.

An operator that is not in the table raises: a ledger with holes is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.utils._python_dispatch import TorchDispatchMode

from cme295lab.parallel.communication.calls import CollectiveCall, Watcher, describe, is_hidden, watching

_C10D, _FUNCTIONAL = "c10d", ("_c10d_functional", "_c10d_functional_autograd")
_MOVES_NOTHING = ("wait_tensor", "_wrap_tensor_autograd", "check_for_nan")
Arguments = Mapping[str, Any]
Decoder = Callable[[Arguments, dist.ProcessGroup], list[CollectiveCall]]


@contextmanager
def c10d_watch(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of every collective call in the block, `transport`'s and torch.distributed's alike.

    Raises:
        NotImplementedError: in the block, for an operator that is not known; the message names it.
    """
    with watching(watcher), _Mode(watcher):
        yield


class _Mode(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace = getattr(func, "namespace", "")
        if (namespace == _C10D or namespace in _FUNCTIONAL) and not is_hidden():
            for call, group in decode(func, args, kwargs):
                self._watcher.observe(call, group)
        elif any(issubclass(kind, Tensor) and kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # it will come back as operators on plain tensors, collectives among them
        return func(*args, **kwargs)


def decode(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[CollectiveCall, dist.ProcessGroup]]:
    """Translate an operator of torch.distributed.

    Args:
        func: an overload of a ``c10d`` or ``_c10d_functional`` operator.
        args: its positional arguments.
        kwargs: its named arguments.

    Returns:
        The calls that it makes, each with its group; none for a wait.

    Raises:
        NotImplementedError: if the operator is not known.
    """
    name = func._overloadpacket.__name__
    if name in _MOVES_NOTHING:
        return []
    given = dict(zip((argument.name for argument in func._schema.arguments), args)) | dict(kwargs)
    if func.namespace == _C10D:
        decoder, group = _C10D_OPERATORS.get(name), _unboxed(given.get("process_group"))
    else:
        kind = name.rstrip("_").removesuffix("_out").removesuffix("_coalesced")
        decoder, group = _FUNCTIONAL_OPERATORS.get(kind), _resolve(given.get("group_name"))
    if decoder is None or group is None:
        raise NotImplementedError(
            f"the operator {func.namespace}::{name} of torch.distributed is not known to the ledger, so its bytes "
            f"cannot be counted; add it to {__name__}"
        )
    return [(call, group) for call in decoder(given, group)]


def _unboxed(boxed: Any) -> dist.ProcessGroup | None:
    return boxed if boxed is None or isinstance(boxed, dist.ProcessGroup) else dist.ProcessGroup.unbox(boxed)


def _resolve(name: Any) -> dist.ProcessGroup | None:
    return _resolve_process_group(name) if isinstance(name, str) else _unboxed(name)  # type: ignore[arg-type]


def _flat(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return [tensor for item in nested for tensor in _flat(item)]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _ring(collective: str, shapes_from: str, payload_from: str, detail: str = "") -> Decoder:
    """A ring collective: which argument must agree between the ranks, and which one is the whole vector."""

    def decode_ring(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
        payload = _bytes(_flat(given[payload_from]))
        text = f"{detail} {given[detail]}" if detail else ""
        return [describe(collective, group, _flat(given[shapes_from]), payload_bytes=payload, detail=text)]

    return decode_ring


def _functional_gather(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
    shards = _flat(given["input"] if "input" in given else given["inputs"])
    return [describe("all_gather", group, shards, payload_bytes=_bytes(shards) * group.size())]


def _functional(collective: str) -> Decoder:
    def decode_functional(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
        tensors = _flat(given["input"] if "input" in given else given["inputs"])
        detail = str(given.get("reduce_op", "")) or (f"src {given['src']}" if "src" in given else "")
        return [describe(collective, group, tensors, payload_bytes=_bytes(tensors), detail=detail)]

    return decode_functional


def _all_to_all_single(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
    """Split sizes count rows; without them the parts are equal."""
    sent_tensor, num_ranks, rank = given["input"], group.size(), group.rank()
    rows = sent_tensor.shape[0] if sent_tensor.ndim else 1
    sent = list(given["input_split_sizes"]) or [rows // num_ranks] * num_ranks
    received = list(given["output_split_sizes"])
    if not received:
        output = given.get("output")
        received = [(rows if output is None else output.shape[0]) // num_ranks] * num_ranks
    for name, sizes in (("input_split_sizes", sent), ("output_split_sizes", received)):
        if len(sizes) != num_ranks:
            raise ValueError(f"{name} must have one size for each of the {num_ranks} ranks, got {sizes}")
    row_bytes = _bytes([sent_tensor]) / max(rows, 1)
    traffic = (sum(sent) - sent[rank]) * row_bytes, (sum(received) - received[rank]) * row_bytes
    payload = _bytes([sent_tensor])
    call = describe("all_to_all", group, [sent_tensor], payload_bytes=payload, traffic=traffic, splits=(sent, received))
    return [call]


def _all_to_all_lists(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
    sent, received, rank = _flat(given["input_tensors"]), _flat(given["output_tensors"]), group.rank()
    traffic = _bytes(sent) - _bytes([sent[rank]]), _bytes(received) - _bytes([received[rank]])
    sizes = [tensor.numel() for tensor in sent], [tensor.numel() for tensor in received]
    return [describe("all_to_all", group, sent, payload_bytes=_bytes(sent), traffic=traffic, splits=sizes)]


def _rooted(collective: str, shards_from: str) -> Decoder:
    """Gather and scatter: everything goes to, or comes from, the root."""

    def decode_rooted(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
        shards, num_ranks = _flat(given[shards_from]), group.size()
        at_root, others = _bytes(shards) * (num_ranks - 1), _bytes(shards)
        is_root = group.rank() == given["root_rank"]
        sends, receives = (0, at_root) if is_root else (others, 0)
        traffic = (sends, receives) if collective == "gather" else (receives, sends)
        payload = _bytes(shards) * num_ranks
        detail = f"root {given['root_rank']}"
        return [describe(collective, group, shards, payload_bytes=payload, traffic=traffic, detail=detail)]

    return decode_rooted


def _message(collective: str) -> Decoder:
    def decode_message(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
        tensors = _flat(given["tensors"] if "tensors" in given else given["tensor"])
        return [_one_message(collective, tensors, group)]

    return decode_message


def _one_message(collective: str, tensors: list[Tensor], group: dist.ProcessGroup) -> CollectiveCall:
    size = _bytes(tensors)
    traffic = (size, 0) if collective == "send" else (0, size)
    return describe(collective, group, tensors, payload_bytes=size, traffic=traffic)


def _batch(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
    names = {"isend": "send", "irecv": "recv"}
    return [_one_message(names[kind], [tensor], group) for kind, tensor in zip(given["op_list"], given["tensors"])]


def _barrier(given: Arguments, group: dist.ProcessGroup) -> list[CollectiveCall]:
    return [describe("barrier", group, [], payload_bytes=0, traffic=(0, 0))]


_C10D_OPERATORS: dict[str, Decoder] = {
    "allreduce_": _ring("all_reduce", "tensors", "tensors"),
    "allreduce_coalesced_": _ring("all_reduce", "tensors", "tensors"),
    "allgather_": _ring("all_gather", "input_tensors", "output_tensors"),
    "allgather_coalesced_": _ring("all_gather", "input_list", "output_lists"),
    "_allgather_base_": _ring("all_gather", "input_tensor", "output_tensor"),
    "allgather_into_tensor_coalesced_": _ring("all_gather", "inputs", "outputs"),
    "reduce_scatter_": _ring("reduce_scatter", "input_tensors", "input_tensors"),
    "_reduce_scatter_base_": _ring("reduce_scatter", "input_tensor", "input_tensor"),
    "reduce_scatter_tensor_coalesced_": _ring("reduce_scatter", "inputs", "inputs"),
    "broadcast_": _ring("broadcast", "tensors", "tensors", "root_rank"),
    "reduce_": _ring("reduce", "tensors", "tensors", "root_rank"),
    "alltoall_base_": _all_to_all_single,
    "alltoall_": _all_to_all_lists,
    "gather_": _rooted("gather", "input_tensors"),
    "scatter_": _rooted("scatter", "output_tensors"),
    "send": _message("send"),
    "recv_": _message("recv"),
    "recv_any_source_": _message("recv"),
    "barrier": _barrier,
    "monitored_barrier_": _barrier,
}
_FUNCTIONAL_OPERATORS: dict[str, Decoder] = {
    "all_reduce": _functional("all_reduce"),
    "all_gather_into_tensor": _functional_gather,
    "reduce_scatter_tensor": _functional("reduce_scatter"),
    "broadcast": _functional("broadcast"),
    "all_to_all_single": _all_to_all_single,
    "isend": _message("send"),
    "irecv": _message("recv"),
    "batch_p2p_ops": _batch,
}
