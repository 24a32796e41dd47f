"""The block sizes that the Triton kernels run with when the caller does not choose.

A plain table, not an autotuner: the numbers are there to be read and changed. Each row was compiled for sm_80, sm_90
and sm_100 and kept because it needs at most 99 KiB of shared memory on the first two (what a block has on the smallest
GPUs of their time, such as an L4 or an RTX 4090) and 113 KiB of 227 on the third, and because it spills under 64 bytes
per thread. None of it was timed on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cme295lab.attention.validation import check_block_size


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How one kernel is launched: queries and keys per tile, warps per program, tiles in flight (pipelining)."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True)
class AttentionConfigs:
    """The launch configurations of the forward kernel and of the two backward kernels."""

    forward: LaunchConfig
    key_value_grads: LaunchConfig
    query_grad: LaunchConfig


def _config(block_m: int, block_n: int, num_warps: int, num_stages: int) -> LaunchConfig:
    return LaunchConfig(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages)


_WIDE = AttentionConfigs(
    forward=_config(128, 64, 8, 3), key_value_grads=_config(32, 128, 8, 2), query_grad=_config(128, 64, 8, 2)
)

# (bytes per element, head dim padded to a power of two) -> configurations
CONFIGS: dict[tuple[int, int], AttentionConfigs] = {
    (2, 16): _WIDE,
    (2, 32): _WIDE,
    (2, 64): _WIDE,
    (2, 128): AttentionConfigs(
        forward=_config(128, 64, 8, 2), key_value_grads=_config(32, 128, 8, 2), query_grad=_config(64, 64, 4, 2)
    ),
    (4, 16): AttentionConfigs(
        forward=_config(64, 32, 8, 2), key_value_grads=_config(32, 32, 8, 1), query_grad=_config(32, 32, 8, 1)
    ),
    (4, 32): AttentionConfigs(
        forward=_config(64, 32, 8, 2), key_value_grads=_config(32, 32, 8, 1), query_grad=_config(32, 32, 8, 1)
    ),
    (4, 64): AttentionConfigs(
        forward=_config(64, 32, 8, 2), key_value_grads=_config(32, 32, 8, 1), query_grad=_config(32, 32, 8, 1)
    ),
    (4, 128): AttentionConfigs(
        forward=_config(64, 16, 8, 2), key_value_grads=_config(16, 32, 8, 1), query_grad=_config(32, 16, 8, 1)
    ),
}


def next_block(length: int) -> int:
    """The smallest power of two that holds `length`, and at least 16, which is as small as tensor cores multiply."""
    return max(16, 1 << (length - 1).bit_length())


def default_configs(head_dim: int, element_bytes: int, len_q: int, len_k: int) -> AttentionConfigs:
    """Look the launch configurations up, with tiles no longer than the sequences (rounded up to a power of two, at
    least 16).

    Args:
        head_dim: 16 to 128.
        element_bytes: 2 or 4.
        len_q: number of queries.
        len_k: number of keys.
    """
    table = CONFIGS[element_bytes, next_block(head_dim)]

    def shorten(config: LaunchConfig) -> LaunchConfig:
        block_m = min(config.block_m, next_block(len_q))
        return replace(config, block_m=block_m, block_n=min(config.block_n, next_block(len_k)))

    return AttentionConfigs(
        forward=shorten(table.forward),
        key_value_grads=shorten(table.key_value_grads),
        query_grad=shorten(table.query_grad),
    )


def choose_configs(
    head_dim: int, element_bytes: int, len_q: int, len_k: int, block_m: int | None, block_n: int | None
) -> AttentionConfigs:
    """The default configurations, with the caller's block sizes (where given) in all three kernels.

    Raises:
        ValueError: a block size is not a power of two of at least 16.
    """
    configs = default_configs(head_dim, element_bytes, len_q, len_k)
    chosen = {name: value for name, value in (("block_m", block_m), ("block_n", block_n)) if value is not None}
    for name, value in chosen.items():
        check_block_size(name, value)
    return AttentionConfigs(
        forward=replace(configs.forward, **chosen),
        key_value_grads=replace(configs.key_value_grads, **chosen),
        query_grad=replace(configs.query_grad, **chosen),
    )
