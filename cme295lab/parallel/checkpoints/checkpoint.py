"""Sharded training, saved and resumed: by as many ranks, or by more, or by fewer, in this stage of ZeRO or another.

    save_sharded(directory, optimizer, step=1000)          # on all ranks; each writes what it holds
    load_sharded(directory, optimizer)                     # on all ranks, of whatever number
    consolidate(directory)                                 # anywhere: what the plain model's load_state_dict takes
    consolidate_optimizer(directory)                       # and the plain torch optimizer's

What is saved are the weights that the optimizer updates (in mixed precision the fp32 masters), its states, and the
buffers of the model. With as many ranks as before, training goes on bit for bit; with another number the same elements
are summed by other ranks, in the same order, so losses agree within rounding.

Every rank writes to the same directory, and on several machines that must be a file system that all of them see.
How a checkpoint is made whole or not at all, and how it is checked, is in `checkpoint_files`.

States are cut like weights, so this is for optimizers whose states have the shape of the weights, or are single
numbers: SGD, Adam, AdamW, RMSprop, Adagrad and so on; not Adafactor, nor whatever looks at whole matrices.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel.checkpoints.checkpoint_files import (
    CheckpointError,
    FileEntry,
    Manifest,
    ParameterEntry,
    check_file,
    read_manifest,
    write_manifest,
    write_tensors,
)
from cme295lab.parallel.checkpoints.checkpoint_pieces import BUFFER, WEIGHT, HeldRun, PieceReader, key_of, tensors_of
from cme295lab.parallel.sharding.partition import Piece
from cme295lab.parallel.sharding.zero3_optimizer import FullyShardedOptimizer

Result = TypeVar("Result")


@runtime_checkable
class Saveable(Protocol):
    """What can be saved: an optimizer over shards, such as `ZeroOptimizer`.

    Attributes:
        stage: of ZeRO.
        process_group: the ranks.
        model: with the plain model's names.
        optimizer: this rank's torch optimizer, over the tensors of `held_runs`.
    """

    stage: int
    process_group: dist.ProcessGroup
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def group_names(self) -> Sequence[Sequence[str]]:
        """The parameters of each group by name, in the order in which the plain optimizer has them."""

    def held_runs(self) -> Sequence[Any]:
        """What this rank updates: each with a flat `tensor`, and the `pieces` in it."""

    def weights_changed(self) -> None:
        """Called on all ranks together when the tensors of `held_runs` have new values."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What a checkpoint says besides weights and states.

    Attributes:
        step: steps taken.
        extra: what was added when it was saved.
        world_size: ranks that wrote it.
    """

    step: int
    extra: Mapping[str, Any]
    world_size: int


def save_sharded(
    directory: str | os.PathLike[str], optimizer: Saveable, *, step: int = 0, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint; all ranks call it together, and each writes what it holds.

    If anything fails on the way, the checkpoint that was there before stays whole.

    Args:
        directory: for this checkpoint and its successors; made if it is not there.
        optimizer: the sharded optimizer; knows its model.
        step: steps taken.
        extra: anything that JSON can hold, such as a scheduler's state_dict.

    Raises:
        ValueError: the step is negative.
        CheckpointError: a rank could not write; raised on all ranks.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step must be a whole number, 0 or more, got {step!r}")
    directory, group = Path(directory), optimizer.process_group
    token: list[Any] = [f"files-{step:08d}-{secrets.token_hex(4)}"]
    dist.broadcast_object_list(token, dist.get_global_rank(group, 0), group=group)
    rank, num_ranks = group.rank(), group.size()
    name = f"{token[0]}/rank-{rank:05d}-of-{num_ranks:05d}.safetensors"
    frozen = _frozen_runs(optimizer)
    if optimizer.stage < 3 and rank:
        frozen = []  # every rank has them whole
    runs = [*_trained_runs(optimizer), *frozen]
    tensors = tensors_of(runs)
    pieces = tuple((piece.name, piece.start, piece.stop) for run in runs for piece in run.pieces)
    if rank == 0:
        tensors |= {key_of(BUFFER, key, 0): value for key, value in _buffers(optimizer.model).items()}

    def write() -> FileEntry:
        num_bytes, sha256 = write_tensors(directory / name, tensors)
        return FileEntry(name=name, num_bytes=num_bytes, sha256=sha256, pieces=pieces)

    entry = _on_this_rank_of_all(write, group, doing=f"writing {directory / name}")

    files: list[Any] = [None] * num_ranks
    dist.all_gather_object(files, entry, group=group)

    def finish() -> None:
        if rank == 0:
            write_manifest(directory, _manifest(optimizer, step=step, files=tuple(files), extra=extra or {}))
            for folder in directory.glob("files-*"):
                if folder.name != token[0]:
                    shutil.rmtree(folder)  # of the checkpoint before, or of one that failed

    _on_this_rank_of_all(finish, group, doing=f"writing the manifest in {directory}")


def load_sharded(directory: str | os.PathLike[str], optimizer: Saveable) -> Resumed:
    """Read a checkpoint into an optimizer and its model; all ranks call it together.

    Number of ranks and stage may differ from those that wrote it.

    Args:
        directory: given to `save_sharded`.
        optimizer: of the same class, for the same model.

    Returns:
        The step, and what was added.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: a file is missing, truncated, changed or of a newer format, or the checkpoint is of another
            model or optimizer; raised on all ranks.
    """
    directory, group = Path(directory), optimizer.process_group

    def read() -> Manifest:
        manifest = read_manifest(directory)
        _check_is_of(directory, manifest, optimizer)
        for entry in manifest.files:
            check_file(directory, entry, contents=False)
        for entry in manifest.files[group.rank() :: group.size()]:
            check_file(directory, entry)  # each rank reads a part of the files for their checksums
        return manifest

    manifest = _on_this_rank_of_all(read, group, doing=f"reading {directory}")

    def fill() -> list[dict[str, Tensor]]:
        reader = PieceReader.of_checkpoint(directory, manifest)
        buffers = _buffers(optimizer.model)
        for name, value in reader.buffers():
            buffers[name].copy_(value)
        for run in _frozen_runs(optimizer):
            reader.fill(run)
        return [reader.fill(run) for run in _trained_runs(optimizer)]

    with torch.no_grad():
        states = _on_this_rank_of_all(fill, group, doing=f"reading {directory}")
    for options, saved in zip(optimizer.optimizer.param_groups, manifest.groups, strict=True):
        options.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k != "params"})
    for run, state in zip(optimizer.held_runs(), states, strict=True):
        optimizer.optimizer.state[run.tensor] = state
    optimizer.weights_changed()
    return Resumed(step=manifest.step, extra=manifest.extra, world_size=manifest.world_size)


def consolidate(directory: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Put the weights of a checkpoint together, in one process; no ranks are needed.

    Args:
        directory: given to `save_sharded`.

    Returns:
        What the plain model's `load_state_dict` takes: all names in its order, tied weights once and under both names.

    Raises:
        FileNotFoundError, CheckpointError: as `load_sharded`.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for entry in manifest.files:
        check_file(directory, entry)
    reader = PieceReader.of_checkpoint(directory, manifest)
    values = {entry.name: reader.whole(entry, WEIGHT) for entry in manifest.parameters}
    values.update(reader.buffers())
    values.update({alias: values[name] for alias, name in manifest.aliases.items()})
    return {key: values[key] for key in manifest.keys}


def consolidate_optimizer(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Put the optimizer's states of a checkpoint together, in one process; no ranks are needed.

    Args:
        directory: given to `save_sharded`.

    Returns:
        What the plain torch optimizer's `load_state_dict` takes, if it was made for the same groups of parameters.

    Raises:
        FileNotFoundError, CheckpointError: as `load_sharded`.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for entry in manifest.files:
        check_file(directory, entry)
    reader = PieceReader.of_checkpoint(directory, manifest)
    return _plain_states(manifest.parameters, manifest.groups, reader)


def consolidated_state_dict(optimizer: Saveable) -> dict[str, Any]:
    """Put the states of all ranks together, on every rank; all ranks call it together.

    Args:
        optimizer: the sharded optimizer.

    Returns:
        What the plain torch optimizer's `load_state_dict` takes, as `consolidate_optimizer` gives it.
    """
    held: list[Any] = [None] * optimizer.process_group.size()
    dist.all_gather_object(held, tensors_of(_trained_runs(optimizer)), group=optimizer.process_group)
    parameters, _ = _describe(optimizer.model)
    return _plain_states(parameters, _groups(optimizer), PieceReader.of_ranks(held))


def _plain_states(
    parameters: Sequence[ParameterEntry], groups: Sequence[Mapping[str, Any]], reader: PieceReader
) -> dict[str, Any]:
    """States in the layout of a torch optimizer: parameters are numbered, group by group."""
    entries = {entry.name: entry for entry in parameters}
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group["params"])}
    state = {
        number: {kind: reader.whole(entries[name], kind) for kind in reader.kinds(name)}
        for name, number in numbers.items()
    }
    numbered = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
    return {"state": {number: kinds for number, kinds in state.items() if kinds}, "param_groups": numbered}


def _trained_runs(optimizer: Saveable) -> list[HeldRun]:
    return [
        HeldRun(tensor=run.tensor.detach(), pieces=run.pieces, state=optimizer.optimizer.state.get(run.tensor, {}))
        for run in optimizer.held_runs()
    ]


def _frozen_runs(optimizer: Saveable) -> list[HeldRun]:
    """This rank's part of what is not trained: shards of it in stage 3, all of it in the others."""
    if isinstance(optimizer, FullyShardedOptimizer):
        rank = optimizer.process_group.rank()
        frozen = optimizer.sharded_model.frozen
        return [HeldRun(tensor=part.shard, pieces=part.layout.pieces(rank), state={}) for part in frozen]
    return [
        HeldRun(
            tensor=parameter.detach().view(-1),
            pieces=(Piece(name=name, start=0, stop=parameter.numel(), offset=0),),
            state={},
        )
        for name, parameter in optimizer.model.named_parameters()
        if not parameter.requires_grad
    ]


def _manifest(optimizer: Saveable, *, step: int, files: tuple[FileEntry, ...], extra: Mapping[str, Any]) -> Manifest:
    parameters, aliases = _describe(optimizer.model)
    return Manifest(
        step=step,
        world_size=optimizer.process_group.size(),
        stage=optimizer.stage,
        parameters=parameters,
        aliases=aliases,
        keys=tuple(optimizer.model.state_dict()),
        optimizer=_class_name(optimizer),
        groups=tuple(_groups(optimizer)),
        files=files,
        extra=extra,
    )


def _groups(optimizer: Saveable) -> list[dict[str, Any]]:
    """The options of each parameter group, and under "params" its names."""
    return [
        {**{key: value for key, value in options.items() if key != "params"}, "params": list(names)}
        for options, names in zip(optimizer.optimizer.param_groups, optimizer.group_names(), strict=True)
    ]


def _describe(model: nn.Module) -> tuple[tuple[ParameterEntry, ...], dict[str, str]]:
    """A model's parameters, each once, and the other names that some have."""
    first: dict[int, str] = {}
    entries, aliases = [], {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
            dtype = str(parameter.dtype).removeprefix("torch.")
            entries.append(ParameterEntry(name=name, shape=tuple(parameter.shape), dtype=dtype))
    return tuple(entries), aliases


def _check_is_of(directory: Path, manifest: Manifest, optimizer: Saveable) -> None:
    """See whether a checkpoint is of this model and this kind of optimizer."""
    parameters, aliases = _describe(optimizer.model)
    saved, wanted = ({entry.name: entry.shape for entry in entries} for entries in (manifest.parameters, parameters))
    differences = [f"{name} is missing" for name in wanted if name not in saved]
    differences += [f"{name} is not in the model" for name in saved if name not in wanted]
    differences += [
        f"{name} has shape {saved[name]}, the model's has {shape}"
        for name, shape in wanted.items()
        if name in saved and saved[name] != shape
    ]
    differences += [f"{name} is tied in one and not in the other" for name in aliases.keys() ^ manifest.aliases.keys()]
    if differences:
        more = f", and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise CheckpointError(
            f"{directory} is a checkpoint of another model: {'; '.join(differences[:3])}{more}; make the model "
            "with the config that it was saved with"
        )
    if _class_name(optimizer) != manifest.optimizer:
        raise CheckpointError(
            f"{directory} holds states of {manifest.optimizer}, and the optimizer is {_class_name(optimizer)}; use the "
            "same class, or start a new optimizer from consolidate(directory)"
        )
    groups = [list(names) for names in optimizer.group_names()]
    if groups != [list(group["params"]) for group in manifest.groups]:
        raise CheckpointError(
            f"{directory} was saved with {len(manifest.groups)} parameter groups of "
            f"{[len(group['params']) for group in manifest.groups]} parameters, and the optimizer has {len(groups)} of "
            f"{[len(names) for names in groups]}, or others; make the same groups"
        )


def _class_name(optimizer: Saveable) -> str:
    kind = type(optimizer.optimizer)
    return f"{kind.__module__}.{kind.__qualname__}"


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are in the state dict."""
    kept = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _on_this_rank_of_all(job: Callable[[], Result], group: dist.ProcessGroup, *, doing: str) -> Result:
    """Do something on every rank; if it fails on one, raise on all, so that none waits for it.

    Args:
        job: for this rank.
        group: the ranks.
        doing: what it is, for the message of the other ranks.
    """
    problem: Exception | None = None
    result: Any = None
    try:
        result = job()
    except Exception as error:
        problem = error
    problems: list[Any] = [None] * group.size()
    dist.all_gather_object(problems, None if problem is None else f"{type(problem).__name__}: {problem}", group=group)
    if problem is not None:
        raise problem
    for rank, message in enumerate(problems):
        if message is not None:
            raise CheckpointError(f"rank {rank} failed while {doing}: {message}")
    return result
