"""AdamW for mixed precision: one pass over memory, and the same arithmetic as a dozen passes.

An optimizer step does about fifteen operations per parameter and no sums, so its time is that of its bytes. With fp32
masters, two fp32 moments and a 16-bit gradient, one kernel reads 4 + 4 + 4 + 2 bytes per parameter and writes
4 + 4 + 4 + 2, the last two of them the 16-bit weight for the next forward pass: 28. The other kernels here do one
operation each, as an operator of eager PyTorch does, and bring every intermediate result back to memory: 108.

All scalars come in computed: 1 - beta1, the corrected step size and so on are the same for every element, and worked
out in float64 on the host. The order of operations is that of `cme295lab.precision.adamw.adamw_step_reference`, with
square roots and quotients rounded to nearest, so that the results agree bit for bit, provided that the compiler does
not turn a product and a sum into one fused operation: launch with `enable_fp_fusion=False` on a GPU.

Every tensor is contiguous; `num_elements` may be any number. Grid of all kernels: (cdiv(num_elements, BLOCK),).

Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), Algorithm 2; Micikevicius et al., Mixed
Precision Training (2018), section 3.1.
"""

import triton
import triton.language as tl


@triton.jit
def adamw_kernel(
    master_ptr, gradient_ptr, exp_avg_ptr, exp_avg_sq_ptr, weight_ptr,
    num_elements,
    inverse_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, root_correction, eps, negative_step_size,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One AdamW step: masters and moments in place, the master rounded into `weight`.

    decay = 1 - lr * weight_decay, root_correction = 1 / sqrt(1 - beta2^t), negative_step_size = -lr / (1 - beta1^t).
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offs < num_elements
    g = tl.load(gradient_ptr + offs, mask=inside, other=0.0).to(tl.float32) * inverse_scale
    m = tl.load(exp_avg_ptr + offs, mask=inside, other=0.0) * beta1 + g * one_minus_beta1
    v = tl.load(exp_avg_sq_ptr + offs, mask=inside, other=0.0) * beta2 + g * g * one_minus_beta2
    denominator = tl.sqrt_rn(v) * root_correction + eps
    p = tl.load(master_ptr + offs, mask=inside, other=0.0) * decay
    p = p + tl.div_rn(m * negative_step_size, denominator)
    tl.store(exp_avg_ptr + offs, m, mask=inside)
    tl.store(exp_avg_sq_ptr + offs, v, mask=inside)
    tl.store(master_ptr + offs, p, mask=inside)
    tl.store(weight_ptr + offs, p.to(weight_ptr.dtype.element_ty), mask=inside)


@triton.jit
def cast_kernel(x_ptr, y_ptr, num_elements, BLOCK: tl.constexpr):
    """y = x in y's type, as `y.copy_(x)`."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < num_elements, other=0.0)
    tl.store(y_ptr + offs, x.to(y_ptr.dtype.element_ty), mask=offs < num_elements)


@triton.jit
def multiply_kernel(x_ptr, factor, num_elements, BLOCK: tl.constexpr):
    """x = x * factor, as `x.mul_(factor)`."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < num_elements, other=0.0)
    tl.store(x_ptr + offs, x * factor, mask=offs < num_elements)


@triton.jit
def add_constant_kernel(x_ptr, constant, num_elements, BLOCK: tl.constexpr):
    """x = x + constant, as `x.add_(constant)`."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < num_elements, other=0.0)
    tl.store(x_ptr + offs, x + constant, mask=offs < num_elements)


@triton.jit
def square_root_kernel(x_ptr, y_ptr, num_elements, BLOCK: tl.constexpr):
    """y = sqrt(x) rounded to nearest, as `x.sqrt()`."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < num_elements, other=0.0)
    tl.store(y_ptr + offs, tl.sqrt_rn(x), mask=offs < num_elements)


@triton.jit
def add_scaled_kernel(x_ptr, y_ptr, factor, num_elements, BLOCK: tl.constexpr):
    """x = x + y * factor, as `x.add_(y, alpha=factor)`."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < num_elements, other=0.0)
    y = tl.load(y_ptr + offs, mask=offs < num_elements, other=0.0)
    tl.store(x_ptr + offs, x + y * factor, mask=offs < num_elements)


@triton.jit
def add_square_kernel(x_ptr, y_ptr, factor, num_elements, BLOCK: tl.constexpr):
    """x = x + y * y * factor, as `x.addcmul_(y, y, value=factor)`."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < num_elements, other=0.0)
    y = tl.load(y_ptr + offs, mask=offs < num_elements, other=0.0)
    tl.store(x_ptr + offs, x + y * y * factor, mask=offs < num_elements)


@triton.jit
def add_quotient_kernel(x_ptr, y_ptr, z_ptr, factor, num_elements, BLOCK: tl.constexpr):
    """x = x + y * factor / z, as `x.addcdiv_(y, z, value=factor)`."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < num_elements, other=0.0)
    y = tl.load(y_ptr + offs, mask=offs < num_elements, other=0.0)
    z = tl.load(z_ptr + offs, mask=offs < num_elements, other=1.0)
    tl.store(x_ptr + offs, x + tl.div_rn(y * factor, z), mask=offs < num_elements)
