"""Every operator of a model in the format that suits it, without a change to the model.

    low     matrix products, convolutions, attention: where the time goes, and where rounding does little, since the
            products are summed in fp32. Inputs are cast to 16 bits
    high    softmax, norms, losses, sums, exponentials: sums of many numbers, and functions that leave fp16's range
            (e^12 is more than 65504). 16-bit inputs are cast to fp32
    rest    in the dtype of its inputs; where they differ, in the wider one, as torch does without being told

The two tables below are all of it. A `TorchFunctionMode` sees every call of a torch function while it is entered, looks
the name up and casts. Casts are operators with a gradient, so that gradients change their format at the same places.

fp16 on a CPU is emulated, for there torch multiplies fp16 matrices fifty times slower than fp32 ones. Tensors are true
halves; a low operator casts them to fp32, computes, and rounds its result. In the backward pass the casts run backward:
the gradient that comes is fp16, the arithmetic fp32, and each gradient that leaves is rounded to fp16. That is what a
tensor core does. Attention is one operator: its scores and probabilities stay in fp32, as within a fused kernel.

Differences from `torch.autocast`: weights are cast anew in every call (no cache); `mean` is a sum here; an operator of
the low table with `fp32_accumulation=False` that has no emulation raises instead of computing something else.

Source: Micikevicius et al. 2018, section 3.3; the operator lists of torch.autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cme295lab.precision.accumulation import matmul_in_16_bits, sum_in_16_bits
from cme295lab.precision.policies import PrecisionPolicy, get_policy

LOW_OPERATORS = frozenset(
    {
        # matrix products
        "linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addmv", "addbmm",
        "baddbmm", "einsum", "tensordot", "chain_matmul",
        # convolutions
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
        # attention as one operator
        "scaled_dot_product_attention",
    }
)  # fmt: skip
"""Names of what runs in 16 bits."""

HIGH_OPERATORS = frozenset(
    {
        # probabilities and norms
        "softmax", "log_softmax", "softmin", "logsumexp", "layer_norm", "rms_norm", "group_norm", "normalize",
        "batch_norm", "instance_norm",
        # losses
        "cross_entropy", "nll_loss", "kl_div", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
        "binary_cross_entropy", "binary_cross_entropy_with_logits", "cosine_similarity", "cdist",
        # sums of many numbers
        "norm", "vector_norm", "sum", "mean", "prod", "cumsum", "cumprod", "var", "std",
        # functions that leave the range
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "__pow__", "__rpow__", "reciprocal", "rsqrt",
        "softplus", "sinh", "cosh", "tan",
    }
)  # fmt: skip
"""Names of what runs in fp32, unless the policy has `fp32_reductions=False`; norms of batches always do."""

_CAST = (torch.float32, torch.float16, torch.bfloat16)  # fp64 was asked for by somebody, and integers are no numbers
_ACCUMULATING = frozenset({"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm"})
_WITH_STATISTICS = frozenset({"batch_norm", "instance_norm"})  # of fp32, written in place: a cast would lose them
_FUSED = frozenset({"scaled_dot_product_attention"})  # keeps its sums to itself, in fp32


def autocast_like(policy: str | PrecisionPolicy) -> TorchFunctionMode:
    """A context in which operators run as a policy says.

        >>> weight, x = torch.ones(2, 2), torch.ones(2)
        >>> with autocast_like("bf16-mixed"):
        ...     y = torch.nn.functional.linear(x, weight)
        ...     y.dtype, y.softmax(-1).dtype, (y + x).dtype
        (torch.bfloat16, torch.float32, torch.float32)

    Args:
        policy: a name of `POLICIES`, or a policy.

    Returns:
        What `with` takes. Call `backward()` behind it, as with torch.autocast.

    Raises:
        ValueError: if there is no policy of that name; within the context, if an operator cannot accumulate in 16 bits.
    """
    return _Autocast(get_policy(policy))


class _Autocast(TorchFunctionMode):
    def __init__(self, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.policy = policy

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.policy.compute == "fp32":
            return func(*args, **kwargs)
        if func.__name__ in LOW_OPERATORS:
            return self._low(func, args, kwargs)
        if func.__name__ in HIGH_OPERATORS and kwargs.get("dtype") is None:  # a dtype that is asked for is given
            return self._high(func, args, kwargs)
        return func(*args, **kwargs)

    def _low(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        dtype, name = self.policy.dtype, func.__name__
        if not self.policy.fp32_accumulation and name not in _FUSED and not _has_fp64(args):
            if name not in _ACCUMULATING:
                raise ValueError(
                    f"{name} cannot accumulate in 16 bits here; with fp32_accumulation=False there are "
                    f"{', '.join(sorted(_ACCUMULATING))}, and fused attention, which keeps its sums in fp32"
                )
            return self._accumulate(name, *args, **kwargs)
        if self.policy.compute == "bf16" or not _all_on_cpu((args, kwargs)):
            return func(*_map(args, lambda x: x.to(dtype)), **_map(kwargs, lambda x: x.to(dtype)))

        def rounded(x: Tensor) -> Tensor:
            return x.to(dtype).float()

        result = func(*_map(args, rounded), **_map(kwargs, rounded))
        return result.to(dtype) if result.dtype == torch.float32 else result

    def _high(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        policy = self.policy
        if not policy.fp32_reductions and not policy.fp32_accumulation and func.__name__ in ("sum", "mean"):
            return self._sum(func.__name__, *args, **kwargs)
        stays_high = policy.fp32_reductions or func.__name__ in _WITH_STATISTICS
        dtype = torch.float32 if stays_high else policy.dtype
        return func(*_map(args, lambda x: x.to(dtype)), **_map(kwargs, lambda x: x.to(dtype)))

    def _accumulate(self, name: str, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        if name == "__rmatmul__":
            a, b = b, a
        if name == "linear":
            b = b.t()
        left, right = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
        product = matmul_in_16_bits(left, right, dtype=self.policy.dtype, chunk=self.policy.accumulation_chunk)
        product = product.squeeze(-1) if b.ndim == 1 else product
        product = product.squeeze(-1 if b.ndim == 1 else -2) if a.ndim == 1 else product
        return product if bias is None else product + bias.to(product.dtype)

    def _sum(self, name: str, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        chunk = self.policy.accumulation_chunk
        total = sum_in_16_bits(x, dim, dtype=self.policy.dtype, keepdim=keepdim, chunk=chunk)
        return total if name == "sum" else total / (x.numel() / max(1, total.numel()))


def _map(value: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    """The same arguments, with a cast of every float tensor in them."""
    if isinstance(value, Tensor):
        return cast(value) if value.dtype in _CAST else value
    if isinstance(value, Mapping):
        return {key: _map(part, cast) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(part, cast) for part in value)
    return value


def _has_fp64(args: Iterable[Any]) -> bool:
    return any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in args)


def _all_on_cpu(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _all_on_cpu(tuple(value.values()))
    if type(value) in (list, tuple):
        return all(map(_all_on_cpu, value))
    return not isinstance(value, Tensor) or value.device.type == "cpu"
