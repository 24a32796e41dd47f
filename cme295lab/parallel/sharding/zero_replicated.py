"""What stages 1 and 2 of ZeRO have in common: every rank has all weights, and updates its part of them.

The model is not wrapped: its parameters become views of flat vectors (`flat_weights`), hooks collect their gradients
(`backward_watch`), and the model is called as ever. Buckets (`buckets`) are vectors of weights and vectors of gradients
at once, so the mean of a bucket's gradients arrives where its weights are updated.

Per step each of N ranks sends Ψ (N-1)/N bytes of gradients and as many of weights, together what plain data parallelism
sends; and one number, to agree that all gradients are finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cme295lab.parallel.communication.tensor_checks import check_float_dtypes, resolve_group
from cme295lab.parallel.replication.backward_watch import BackwardWatch, check_unwatched
from cme295lab.parallel.replication.buckets import DEFAULT_BUCKET_BYTES, Bucket, InOrder, plan_buckets
from cme295lab.parallel.replication.replicas import broadcast_values, check_same_model
from cme295lab.parallel.replication.weighting import token_scale
from cme295lab.parallel.sharding.elementwise import check_elementwise
from cme295lab.parallel.sharding.flat_weights import FlatWeights
from cme295lab.parallel.sharding.gradient_health import not_finite
from cme295lab.parallel.sharding.parameter_groups import listed_groups, number_groups
from cme295lab.parallel.sharding.sharded_optimizer import OnNonfinite, ShardedOptimizer, check_on_nonfinite


class ReplicatedWeightsOptimizer(ShardedOptimizer):
    """Updates a part of the weights on each rank and gathers the whole; stages say what becomes of gradients.

    Args:
        model: the same on every rank; rank 0's values count. Its parameters become views of flat vectors.
        optimizer_class: an element-wise optimizer, such as torch.optim.AdamW.
        compute_dtype: such as torch.bfloat16: of the weights and their gradients; floating inputs of the model are
            converted. The optimizer then updates master weights in fp32. None: the parameters' own dtype.
        reduce_dtype: in which gradients are sent, summed and kept; None: `compute_dtype`.
        offload: keep master weights and states in the CPU's memory, and update there.
        param_groups: as for torch's optimizers: dictionaries with "params" and options; None: one group of all.
        on_nonfinite: what to do with gradients that are NaN or infinite: "raise", or "skip" the step.
        bucket_bytes: small parameters are put together up to this size; larger ones travel alone.
        group: the ranks; None means all.
        options: what the optimizer is called with, such as lr.

    Attributes:
        weights: the flat vectors.

    Raises:
        TypeError, ValueError: models that differ between the ranks; a dtype that is no float; more ranks than
            elements; see `ShardedOptimizer` for the rest.
    """

    stage_number: int
    max_in_flight: int | None

    def __init__(
        self,
        model: nn.Module,
        optimizer_class: type[torch.optim.Optimizer],
        *,
        compute_dtype: torch.dtype | None = None,
        reduce_dtype: torch.dtype | None = None,
        offload: bool = False,
        param_groups: Iterable[Mapping[str, Any]] | None = None,
        on_nonfinite: OnNonfinite = "raise",
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
        group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> None:
        group = resolve_group(group)
        check_same_model(model, group=group)
        check_float_dtypes(compute_dtype=compute_dtype, reduce_dtype=reduce_dtype)
        check_unwatched(model)
        check_on_nonfinite(on_nonfinite)
        named = dict(model.named_parameters())
        param_groups = None if param_groups is None else listed_groups(param_groups)
        number_groups(named, param_groups)
        first = next(iter(named.values()))
        check_elementwise(optimizer_class, options, device="cpu" if offload else first.device)
        planned = plan_buckets(named, bucket_bytes=bucket_bytes, num_ranks=group.size())
        trained = {name: each for members in planned for name, each in members.items()}
        broadcast_values(model, group=group)
        flat: dict[str, Any] = {"compute_dtype": compute_dtype, "reduce_dtype": reduce_dtype, "offload": offload}
        self.weights = [FlatWeights(f"bucket {n}", each, group=group, **flat) for n, each in enumerate(planned)]
        self._buckets: InOrder[Bucket] = InOrder(
            [self.make_bucket(weights) for weights in self.weights], max_in_flight=self.max_in_flight
        )
        self._weights_of = {name: weights for weights in self.weights for name in weights.parameters}
        super().__init__(
            model,
            self.weights,
            optimizer_class,
            options=options,
            param_groups=param_groups,
            masters=[weights.master for weights in self.weights],
            offload=offload,
            on_nonfinite=on_nonfinite,
            group=group,
            stage=self.stage_number,
        )
        self._input_hook = None if compute_dtype is None else _compute_in(model, compute_dtype)
        self._watch = BackwardWatch(
            model, trained, on_gradient=self._collect, on_end=self._end_backward, on_forward=self._before_forward
        )

    def make_bucket(self, weights: FlatWeights) -> Bucket:
        """What is done with the gradients of a flat vector."""
        raise NotImplementedError

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes in this block send nothing; gradients add up on each rank until the next one outside.

        The price of the messages saved is memory: a rank then holds its own gradients of all weights.
        """
        return self._watch.no_sync()

    def token_scale(self, num_tokens: int) -> float:
        """What to multiply this rank's summed loss with, for the mean over all tokens; see `weighting.token_scale`."""
        return token_scale(num_tokens, group=self.process_group)

    @property
    def num_padding(self) -> int:
        """Elements of padding in all vectors together."""
        return sum(weights.layout.num_padding for weights in self.weights)

    def close(self) -> nn.Module:
        """Take the hooks away and return the model, with all its weights; the optimizer is of no use afterwards."""
        self._watch.close()
        if self._input_hook is not None:
            self._input_hook.remove()
        return self.model

    def share_weights(self) -> None:
        """Gather all vectors from the ranks' shards."""
        for handle in [weights.start_gather() for weights in self.weights]:
            handle.wait()
        # Written behind autograd's back; a graph that still needs the old values must not be run backward.
        torch.autograd.graph.increment_version([each for w in self.weights for each in w.parameters.values()])

    def local_culprits(self) -> list[str]:
        """Those of this rank's own gradients, of the last backward pass, that were not finite when they were sent."""
        return not_finite({name: total for weights in self.weights for name, total in weights.local_sums.items()})

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for weights in self.weights:
            weights.local.release()
            weights.local_sums.clear()

    def _collect(self, name: str) -> None:
        self._weights_of[name].collect(name)
        self._buckets.advance()

    def _end_backward(self) -> None:
        self._buckets.send_rest()

    def _before_forward(self, has_failed: bool) -> None:
        if has_failed:  # what was sent and what not is mixed up: begin the step anew
            self._buckets.reset()
            self.zero_grad()


def _compute_in(model: nn.Module, dtype: torch.dtype) -> Any:
    """Convert frozen parameters now, and floating inputs whenever the model is called."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)

    def convert(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def before_forward(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return tree_map(convert, args), tree_map(convert, kwargs)

    return model.register_forward_pre_hook(before_forward, with_kwargs=True)
