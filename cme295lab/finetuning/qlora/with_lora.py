"""QLoRA as in the paper: LoRA beside a base in NF4, in one call.

    4-bit base, frozen   +   A, B of rank r beside each linear layer   =   what `lora` and `sft` train like any LoRA

The model carries an ordinary adapter afterwards: `lora.save_adapter` writes it as PEFT does, `lora.set_adapter` turns
it off. It is loaded beside the same base, `freeze_in_four_bits` with the same settings first: quantising is exact, so
the fingerprint agrees. What cannot be done is `lora.merge`: the sum would have to be rounded to 4 bits again.

Adapters are in the dtype that products are computed in, or in `dtype`: bf16 as in the paper, or fp32, which keeps small
updates that bf16 rounds away. In the paper all linear layers have adapters; with query and value alone, a 4-bit base
did not reach the 16-bit result.

Source: Dettmers et al. 2023, "QLoRA", §3 and §4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from cme295lab.finetuning.attached import check_unattached
from cme295lab.finetuning.lora.adapting import DEFAULT_ADAPTER, add_lora, check_new_adapter
from cme295lab.finetuning.lora.options import LoraOptions
from cme295lab.finetuning.lora.targets import Targets
from cme295lab.finetuning.qlora.models import QloraSummary, adapt_in_four_bits


def qlora_model(
    model: nn.Module,
    *,
    rank: int = 64,
    alpha: float = 16.0,
    targets: Targets = "all-linear",
    dropout: float = 0.0,
    rs_lora: bool = False,
    dtype: str | None = None,
    block_size: int = 64,
    double_quant: bool = True,
    skip: Sequence[str] | None = None,
    compute_dtype: torch.dtype = torch.bfloat16,
    adapter: str = DEFAULT_ADAPTER,
) -> QloraSummary:
    """Freeze a model in 4 bits and add a LoRA adapter that learns, in place.

    Args:
        model: holds `nn.Linear` layers, and nothing is attached to it.
        rank, alpha, targets, dropout, rs_lora, dtype, adapter: as for `lora.add_lora`.
        block_size, double_quant, skip, compute_dtype: as for `freeze_in_four_bits`.

    Returns:
        Bytes by class, by formula and measured, and what learns.

    Raises:
        TypeError, ValueError: as for `lora.add_lora` and `freeze_in_four_bits`, or if something is attached already.
            The model is then as it was.
    """
    check_unattached(model)
    options = LoraOptions(rank=rank, alpha=alpha, targets=targets, dropout=dropout, rs_lora=rs_lora, dtype=dtype)
    check_new_adapter(model, adapter, options)  # before a weight is rounded

    def add(base: nn.Module) -> None:
        add_lora(
            base, rank=rank, alpha=alpha, targets=targets, dropout=dropout, rs_lora=rs_lora, dtype=dtype,
            adapter=adapter,
        )  # fmt: skip

    return adapt_in_four_bits(
        model, add, block_size=block_size, double_quant=double_quant, skip=skip, compute_dtype=compute_dtype
    )
