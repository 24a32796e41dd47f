"""Checkpoints on real processes: other numbers of ranks, other stages, crashes half way, files that are not right."""

import copy
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel import (
    CheckpointError,
    DistributedError,
    FullyShardedModel,
    ZeroOptimizer,
    consolidate,
    consolidate_optimizer,
    consolidated_state_dict,
    load_sharded,
    run_distributed,
    save_sharded,
)
from cme295lab.parallel.checkpoints import checkpoint
from cme295lab.parallel.checkpoints.checkpoint_files import read_manifest
from cme295lab.transformer import DecoderLM, ModelConfig

CONFIG = ModelConfig(
    vocab_size=31, num_layers=2, dim=10, num_heads=2, mlp_dim=17, max_seq=8, mlp="gelu", norm="layernorm",
    position="learned", bias=True, tied_head=True,
)  # fmt: skip
NUM_SEQUENCES = 12  # divides by 1, 2, 3 and 4 ranks


def _model(seed: int = 0, config: ModelConfig = CONFIG) -> DecoderLM:
    torch.manual_seed(seed)
    model = DecoderLM(config)
    model.register_buffer("counter", torch.tensor([float(seed)]))
    model.layers[1].mlp.up.weight.requires_grad_(False)
    return model


def _optimizer_for(model: nn.Module, stage: int, **options: Any) -> tuple[nn.Module, Any]:
    """The callable model and its optimizer, with two parameter groups."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0, "lr": 3e-3},
    ]
    wrapped = FullyShardedModel(model, **options) if stage == 3 else model
    options = {} if stage == 3 else options
    return wrapped, ZeroOptimizer(wrapped, torch.optim.AdamW, stage=stage, param_groups=groups, lr=1e-2, **options)


def _train(wrapped: nn.Module, optimizer: Any, first_step: int, num_steps: int) -> list[float]:
    """The same sequences in every step whatever the number of ranks; the mean loss over all of them."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in range(first_step, first_step + num_steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(CONFIG.vocab_size, (NUM_SEQUENCES, CONFIG.max_seq + 1), generator=generator)
        own = tokens.tensor_split(num_ranks)[rank]
        loss = nn.functional.cross_entropy(wrapped(own[:, :-1]).flatten(0, 1).float(), own[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / num_ranks)
    return losses


def _save(directory: Path, stage: int, num_steps: int = 3, more_steps: int = 0) -> list[float]:
    """Train, save, and go on for comparison."""
    model = _model()
    wrapped, optimizer = _optimizer_for(model, stage)
    _train(wrapped, optimizer, 0, num_steps)
    model.counter.fill_(num_steps)
    save_sharded(directory, optimizer, step=num_steps, extra={"seen": [1, 2]})
    live, saved = consolidated_state_dict(optimizer), consolidate_optimizer(directory)
    assert str(live["param_groups"]).replace("(", "[").replace(")", "]") == str(saved["param_groups"])  # JSON's tuples
    for number, state in saved["state"].items():
        _assert_equal(live["state"][number], state)
    return _train(wrapped, optimizer, num_steps, more_steps)


def _resume(directory: Path, stage: int, more_steps: int, save_to: Path | None = None) -> list[float]:
    model = _model(seed=5)
    wrapped, optimizer = _optimizer_for(model, stage)
    _train(wrapped, optimizer, 50, 1)  # states and weights that must be overwritten
    resumed = load_sharded(directory, optimizer)
    assert resumed.extra == {"seen": [1, 2]}
    assert model.counter.item() == resumed.step
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    if save_to is not None:
        save_sharded(save_to, optimizer, step=resumed.step, extra=resumed.extra)
    return _train(wrapped, optimizer, resumed.step, more_steps)


def test_training_goes_on_with_other_numbers_of_ranks_and_in_other_stages(tmp_path: Path) -> None:
    wanted = run_distributed(_save, 2, tmp_path / "first", 3, more_steps=3)[0]
    assert run_distributed(_resume, 2, tmp_path / "first", 3, 3)[0] == wanted  # bit for bit
    weights, states = consolidate(tmp_path / "first"), consolidate_optimizer(tmp_path / "first")
    at = tmp_path / "first"
    for num_ranks, stage in ((3, 2), (4, 3), (1, 1), (2, 1), (2, 3)):
        then = tmp_path / f"{num_ranks} ranks, stage {stage}"
        losses = run_distributed(_resume, num_ranks, at, stage, 3, save_to=then)[0]
        torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-5)
        _assert_equal(consolidate(then), weights)
        for number, state in consolidate_optimizer(then)["state"].items():
            _assert_equal(state, states["state"][number])
        at = then
    # and after 2 -> 3 -> 4 -> 1 -> 2 ranks and all stages, it is what it was in the beginning
    assert run_distributed(_resume, 2, at, 3, 3)[0] == wanted


def test_consolidated_states_go_into_the_plain_model_and_optimizer(tmp_path: Path) -> None:
    wanted = run_distributed(_save, 3, tmp_path, 2, more_steps=2)[0]
    weights = consolidate(tmp_path)
    model = _model(seed=5)
    assert list(weights) == list(model.state_dict())
    assert weights["head.weight"] is weights["embedding.weight"]
    model.load_state_dict(weights)
    assert model.counter.item() == 3
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if (p.dim() > 1) is matrices]} for matrices in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=7.0)
    optimizer.load_state_dict(consolidate_optimizer(tmp_path))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 3e-3]

    def losses_of_the_plain_model() -> list[float]:
        losses = []
        for step in (3, 4):
            generator = torch.Generator().manual_seed(step)
            tokens = torch.randint(CONFIG.vocab_size, (NUM_SEQUENCES, CONFIG.max_seq + 1), generator=generator)
            optimizer.zero_grad()
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    torch.testing.assert_close(losses_of_the_plain_model(), wanted, rtol=1e-4, atol=1e-5)


def _assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def _die_while_saving(directory: Path, rank: int, moment: str) -> None:
    """Save once; then save again, and be killed on the way."""
    wrapped, optimizer = _optimizer_for(_model(), 3)
    _train(wrapped, optimizer, 0, 1)
    save_sharded(directory, optimizer, step=1)
    _train(wrapped, optimizer, 1, 1)

    def die(*_: Any) -> Any:
        if dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    if moment == "tensors":
        real = checkpoint.write_tensors

        def write_half(path: Path, tensors: dict[str, Tensor]) -> Any:
            result = real(path, tensors)
            if dist.get_rank() == rank:
                os.truncate(path, path.stat().st_size // 2)
                die()
            return result

        checkpoint.write_tensors = write_half
    else:
        Path.replace = die  # type: ignore[assignment, method-assign]  # the manifest is written, and not in its place
    save_sharded(directory, optimizer, step=2)


@pytest.mark.parametrize(("rank", "moment"), [(1, "tensors"), (0, "manifest")])
def test_a_rank_killed_while_saving_leaves_the_checkpoint_before(tmp_path: Path, rank: int, moment: str) -> None:
    with pytest.raises(DistributedError, match=f"rank {rank}.*SIGKILL"):
        run_distributed(_die_while_saving, 2, tmp_path, rank, moment)
    assert read_manifest(tmp_path).step == 1
    weights = consolidate(tmp_path)
    assert all(value.isfinite().all() for value in weights.values())
    assert len(list(tmp_path.glob("files-*"))) == 2
    run_distributed(_save, 1, tmp_path, 1, 2)
    assert read_manifest(tmp_path).step == 2
    assert len(list(tmp_path.glob("files-*"))) == 1  # what the crash left is cleared away


def _break(directory: Path, name: str) -> Path:
    """A copy of a checkpoint with one thing wrong."""
    broken = directory.parent / name
    shutil.copytree(directory, broken)
    manifest = broken / "manifest.json"
    file = sorted(broken.glob("files-*/rank-00001-*"))[0]
    if name == "missing shard":
        file.unlink()
    elif name == "truncated shard":
        os.truncate(file, file.stat().st_size - 10)
    elif name == "tampered shard":
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    elif name == "truncated manifest":
        manifest.write_text(manifest.read_text()[:-40])
    elif name == "tampered manifest":
        manifest.write_text(manifest.read_text().replace('"step": 3', '"step": 4'))
    elif name == "newer format":
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    elif name == "no manifest":
        manifest.unlink()
    return broken


BROKEN = {
    "missing shard": r"rank-00001-of-00002.safetensors is missing; copy it again",
    "truncated shard": r"rank-00001.* bytes instead of .*: truncated; copy it again",
    "tampered shard": r"rank-00001.* was changed after it was written",
    "truncated manifest": r"manifest.json is truncated",
    "tampered manifest": r"manifest.json was changed after it was written",
    "newer format": r"manifest.json has format 2, and this version of cme295lab reads format 1",
    "no manifest": r"manifest.json does not exist",
}


def _messages(directories: list[Path], whole: Path) -> list[str]:
    """What this rank is told of each broken checkpoint, and of a model or optimizer that it is not of."""
    other = copy.deepcopy(_model())
    _, optimizer = _optimizer_for(other, 2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    messages = [_message(directory, optimizer) for directory in directories]
    _assert_equal(other.state_dict(), before)
    wide = ModelConfig(**{**CONFIG.__dict__, "mlp_dim": 20, "tied_head": False})
    for model, stage, kind in ((_model(config=wide), 3, torch.optim.AdamW), (_model(), 1, torch.optim.SGD)):
        wrapped = FullyShardedModel(model) if stage == 3 else model
        messages.append(_message(whole, ZeroOptimizer(wrapped, kind, stage=stage, lr=1.0)))
    messages.append(_message(whole, ZeroOptimizer(_model(), torch.optim.AdamW, stage=1, lr=1.0)))
    for step in (-1, 1.5):
        with pytest.raises(ValueError, match="step must be a whole number"):
            save_sharded(whole, optimizer, step=step)  # type: ignore[arg-type]
    with pytest.raises((TypeError, CheckpointError), match="JSON"):
        save_sharded(whole.parent / "not JSON", optimizer, extra={"tensor": torch.zeros(1)})
    return messages


def _message(directory: Path, optimizer: Any) -> str:
    with pytest.raises((CheckpointError, FileNotFoundError)) as caught:
        load_sharded(directory, optimizer)
    return str(caught.value)


def test_checkpoints_that_are_not_right_are_refused_on_all_ranks(tmp_path: Path) -> None:
    run_distributed(_save, 2, tmp_path / "whole", 3)
    whole = tmp_path / "whole"
    broken = [_break(whole, name) for name in BROKEN]
    wanted = [
        *BROKEN.values(),
        r"another model: .*head.weight is missing.*mlp.up.weight has shape \(17, 10\), the model's has \(20, 10\)",
        r"holds states of torch.optim.adamw.AdamW, and the optimizer is torch.optim.sgd.SGD; use the same class",
        r"saved with 2 parameter groups .* and the optimizer has 1 ",
    ]
    for messages in run_distributed(_messages, 3, broken, whole):
        for pattern, message in zip(wanted, messages, strict=True):
            assert re.search(pattern, message), message
    for (name, pattern), directory in zip(BROKEN.items(), broken):
        with pytest.raises((CheckpointError, FileNotFoundError), match=pattern):
            consolidate(directory)
        assert name
    assert json.loads((whole / "manifest.json").read_text())["world_size"] == 2
