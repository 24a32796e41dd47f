"""A linear layer whose weight stays in 4 bits: it is dequantised when it is needed, a slab of rows at a time.

    forward     y = x Wᵀ + b          for each slab of W's rows: dequantise, multiply, write its columns of y
    backward    dx = dy W             for each slab again: dequantise, multiply, add
                db = sum of dy

The weight is frozen: it has no gradient, and nothing of its size is kept between forward and backward, only the packed
codes. That is what QLoRA trains through: the adapters beside such a layer learn, and gradients pass.

A slab is small enough for the processor's cache. So there is no buffer of the weight's size to allocate or to keep, and
a forward pass needs 4 MB where dequantising all of a 4096 × 4096 weight needs 64 MB (`linear_plainly` does that: two
lines to read, and what the tests hold the slabs against).

`compute_dtype` is what is multiplied: inputs are rounded to it, the weight is dequantised to it, and the result comes
back in the input's dtype. On a CPU bfloat16 is fast where the processor has it; float16 there is slow everywhere.

What is not covered: second derivatives; and a kernel that multiplies without writing the dequantised weight to memory,
which is `four_bit_kernels`, for GPUs.

Source: Dettmers et al. 2023, "QLoRA", §3, equations 5 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cme295lab.quantization.codebooks import QuantType
from cme295lab.quantization.files import from_state_dict, to_state_dict
from cme295lab.quantization.four_bit import DTYPES, FourBitTensor, quantize_four_bit
from cme295lab.quantization.four_bit_fast import dequantize_into

SLAB_VALUES = 1 << 20
"""Weights dequantised at a time on a CPU; elsewhere it is all of them."""


class Linear4bit(nn.Module):
    """x Wᵀ + b with W in 4 bits and frozen.

    Its state dict is that of bitsandbytes' layer: `weight`, `weight.absmax`, ... (see `files`) and `bias`. Loading one
    takes over the block size and type of what is loaded. `weight` is a `FourBitTensor` and no parameter: optimizers do
    not see it, and `.to(dtype)` changes the bias alone.

    Args:
        in_features: numbers in.
        out_features: numbers out.
        bias: whether to add one; it can be trained.
        quant_type: "nf4" or "fp4".
        block_size: values to a scale.
        double_quant: whether to store the scales in 8 bits.
        compute_dtype: dtype of the product: fp32, fp16 or bf16.
        weight: of shape (out_features, in_features), quantised; None draws one as `nn.Linear` does.

    Raises:
        TypeError: if `compute_dtype` is none of those.
        ValueError: if a size is not positive, `weight` has another shape, or a setting is not one of those allowed.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        quant_type: QuantType = "nf4",
        block_size: int = 64,
        double_quant: bool = True,
        compute_dtype: torch.dtype = torch.bfloat16,
        weight: FourBitTensor | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"in_features and out_features must be positive, got {in_features} and {out_features}")
        check_compute_dtype(compute_dtype)
        self.in_features, self.out_features, self.compute_dtype = in_features, out_features, compute_dtype
        if weight is None:
            drawn = nn.init.kaiming_uniform_(torch.empty(out_features, in_features), a=math.sqrt(5))
            weight = quantize_four_bit(
                drawn, quant_type=quant_type, block_size=block_size, double_quant=double_quant
            )
        elif weight.shape != (out_features, in_features):
            expected = (out_features, in_features)
            raise ValueError(f"weight must have shape (out_features, in_features) = {expected}, got {weight.shape}")
        self.weight = weight
        bound = in_features**-0.5
        drawn_bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None
        self.register_parameter("bias", drawn_bias)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        quant_type: QuantType = "nf4",
        block_size: int = 64,
        double_quant: bool = True,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> Linear4bit:
        """Quantise the weight of a linear layer; the bias is the same parameter as before.

        Raises:
            TypeError: if the weight is not fp32, fp16 or bf16.
            ValueError: if it holds NaN or infinity.
        """
        weight = quantize_four_bit(
            linear.weight, quant_type=quant_type, block_size=block_size, double_quant=double_quant
        )
        return cls.from_weight(weight, linear.bias, compute_dtype=compute_dtype, training=linear.training)

    @classmethod
    def from_weight(
        cls,
        weight: FourBitTensor,
        bias: nn.Parameter | None = None,
        *,
        compute_dtype: torch.dtype = torch.bfloat16,
        training: bool = True,
    ) -> Linear4bit:
        """Make a layer of a quantised weight, (out_features, in_features), and a bias that may be None.

        Raises:
            ValueError: if the weight is no matrix.
        """
        if len(weight.shape) != 2:
            raise ValueError(f"weight must be a matrix, (out_features, in_features), got shape {tuple(weight.shape)}")
        out_features, in_features = weight.shape
        layer = cls(in_features, out_features, bias=False, compute_dtype=compute_dtype, weight=weight)
        layer.register_parameter("bias", bias)
        return layer.train(training)

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, scales and bias."""
        return self.weight.num_bytes + (0 if self.bias is None else self.bias.nbytes)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """The product in `compute_dtype`, given back in the dtype of `x`.

        Raises:
            ValueError: if the last dimension of `x` is not `in_features`.
        """
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"the last dimension of x must be in_features = {self.in_features}, got {tuple(x.shape)}")
        rows = x.to(self.compute_dtype).reshape(-1, self.in_features)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        y: Tensor = _FourBitProduct.apply(rows, bias, self.weight)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print` says of the layer."""
        scales = "plain" if isinstance(self.weight.absmax, Tensor) else "double"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"quant_type={self.weight.quant_type}, block_size={self.weight.block_size}, scales={scales}, "
            f"compute_dtype={self.compute_dtype}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear4bit:
        super()._apply(fn, recurse)
        # Codes are integers, which casts leave alone: what is left of `fn` is the device. Scales must stay fp32.
        self.weight = self.weight.to(fn(self.weight.packed).device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(to_state_dict(self.weight, f"{prefix}weight"))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name = f"{prefix}weight"
        mine = [key for key in state_dict if key == name or key.startswith(f"{name}.")]
        others = {key: value for key, value in state_dict.items() if key not in mine}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not mine:
            missing_keys.append(name)
            return
        try:
            weight = from_state_dict(state_dict, name)
        except (ValueError, TypeError) as error:
            error_msgs.append(f"{error}. (A weight that is not quantised becomes one by Linear4bit.from_linear.)")
            return
        if weight.shape != self.weight.shape:
            error_msgs.append(f"{name} has shape {tuple(weight.shape)}, the layer needs {tuple(self.weight.shape)}")
            return
        self.weight = weight.clone().to(self.weight.packed.device)


def linear_plainly(
    x: Float[Tensor, "*batch in_features"], weight: FourBitTensor, bias: Float[Tensor, " out_features"] | None = None
) -> Float[Tensor, "*batch out_features"]:
    """What `Linear4bit` computes, with all of the weight dequantised at once."""
    return F.linear(x, weight.dequantize(x.dtype), bias)


def check_compute_dtype(compute_dtype: torch.dtype) -> None:
    """Refuse what a product cannot be computed in.

    Raises:
        TypeError: naming what is allowed.
    """
    if compute_dtype not in DTYPES:
        allowed = ", ".join(map(str, DTYPES))
        raise TypeError(f"compute_dtype must be one of {allowed}, got {compute_dtype}")


class _FourBitProduct(torch.autograd.Function):
    """x Wᵀ + b and its gradients for x and b; W is a `FourBitTensor`, which autograd passes by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: FourBitTensor) -> Tensor:
        ctx.weight = weight
        y = x.new_empty(x.shape[0], weight.shape[0])
        for start, end, slab in _slabs(weight, x.dtype):
            columns = y[:, start:end]
            if bias is None:
                torch.mm(x, slab.t(), out=columns)
            else:
                torch.addmm(bias[start:end], x, slab.t(), out=columns)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_x, needs_bias, _ = ctx.needs_input_grad
        return _input_gradient(grad, ctx.weight) if needs_x else None, grad.sum(dim=0) if needs_bias else None, None


def _input_gradient(grad: Tensor, weight: FourBitTensor) -> Tensor:
    # Slabs are summed in fp32: rounding each partial sum to 16 bits would lose what one product would not.
    total = torch.zeros(grad.shape[0], weight.shape[1], dtype=torch.float32, device=grad.device)
    for start, end, slab in _slabs(weight, grad.dtype):
        if grad.dtype == torch.float32:
            total.addmm_(grad[:, start:end], slab)
        else:
            total.add_(grad[:, start:end] @ slab)
    return total.to(grad.dtype)


def _slabs(weight: FourBitTensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """First row, last row + 1, and the rows dequantised; the next slab overwrites the memory of this one."""
    num_rows, num_columns = weight.shape
    whole_blocks = weight.block_size // math.gcd(num_columns, weight.block_size)  # a slab starts where a block does
    height = num_rows
    if weight.packed.device.type == "cpu":
        height = min(num_rows, max(1, SLAB_VALUES // (num_columns * whole_blocks)) * whole_blocks)
    memory = torch.empty(height * num_columns, dtype=dtype, device=weight.packed.device)
    packed, scales = weight.packed.view(-1), weight.scales()
    for start in range(0, num_rows, height):
        end = min(start + height, num_rows)
        first, last = start * num_columns, end * num_columns
        slab = memory[: last - first]
        dequantize_into(
            slab,
            packed[first // 2 : (last + 1) // 2],
            scales[first // weight.block_size : -(-last // weight.block_size)],
            weight.quant_type,
            weight.block_size,
        )
        yield start, end, slab.view(end - start, num_columns)
