"""Fine-tuning in one call, which can be killed and repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cme295lab.finetuning.sft.config import SftConfig
from cme295lab.finetuning.sft.methods import choose_parameters
from cme295lab.finetuning.sft.trainer import SftRun, SftTrainer
from cme295lab.hardware import Device
from cme295lab.pretraining.packing import MixtureDataset, PackedDataset
from cme295lab.pretraining.trainer import has_checkpoint
from cme295lab.transformer.decoder import DecoderLM


def train_sft(
    model: DecoderLM,
    train: PackedDataset | MixtureDataset,
    config: SftConfig,
    *,
    evaluation: Mapping[str, PackedDataset] | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    peak: str | Device | float | None = None,
) -> SftRun:
    """Fine-tune a model on conversations.

    A run that is in the folder, with the same settings and data, is gone on with; one that is done is returned at once.
    So the same call, with the base model, can be repeated until it is done.

    Args:
        model: the base; afterwards it has the weights of the last step. `load_best` gives it the best ones.
        train: packed conversations (`pack_chats`), or a mixture of several.
        config: the settings.
        evaluation: name -> packed conversations; the first decides which weights are best, or `config.best_by`.
        folder: for checkpoints, the log and the best weights; None keeps nothing but the best weights, in memory.
        progress: whether to draw a progress bar.
        peak: what MFU is measured against: a GPU's name, or FLOP/s; None for no MFU.

    Returns:
        Losses, evaluations from before the first update on, and which of them was best.

    Raises:
        TypeError: if the method has no such option.
        ValueError: if there is nothing to train, data have no assistant token or do not belong to the model, a batch
            has none, or the folder holds another run.
        TrainingDivergedError: if the loss or the gradient is not finite.

    Example:
        >>> from cme295lab.finetuning.chat import ChatExample, pack_chats
        >>> from cme295lab.transformer import DecoderLM, ModelConfig
        >>> chats = pack_chats([ChatExample([5, 6, 7], [False, False, True])], seq=4, end_token=0)
        >>> shape = ModelConfig(vocab_size=8, num_layers=1, dim=8, num_heads=2, mlp_dim=8, max_seq=4)
        >>> config = SftConfig(num_steps=20, rows_per_step=1, learning_rate=1e-2)
        >>> run = train_sft(DecoderLM(shape), chats, config, evaluation={"chats": chats}, progress=False)
        >>> run.best_step
        20
    """
    settings = config.train_config(train)
    evaluation = dict(evaluation or {})
    best_by = (config.best_by or next(iter(evaluation), None)) if config.keep_best else None
    choose_parameters(model, config.method, config.method_options, seed=config.seed)
    method, optimizer = {"name": config.method, **config.method_options}, config.optimizer_choice()
    if folder is None or not has_checkpoint(folder):
        trainer = SftTrainer(
            model, train, settings, validation=evaluation, folder=folder, progress=progress, peak=peak,
            best_by=best_by, method=method, optimizer=optimizer,
        )  # fmt: skip
        return trainer.run()
    trainer = SftTrainer.resume(
        folder, model, train, validation=evaluation, progress=progress, peak=peak, best_by=best_by, method=method,
        optimizer=optimizer,
    )  # fmt: skip
    here, there = settings.to_dict(), trainer.config.to_dict()
    if differ := [f"{name} {there[name]} there, {here[name]} here" for name in here if here[name] != there[name]]:
        raise ValueError(
            f"the folder {folder} holds a run with other settings ({'; '.join(differ)}): give the same, or another "
            f"folder"
        )
    return trainer.run()
