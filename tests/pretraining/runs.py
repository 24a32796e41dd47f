"""A run that takes a blink: what the tests of the trainer train, here and in a child process.

`python -m tests.pretraining.runs FOLDER` starts it, or goes on with it, until it is done or killed.
"""

import sys

import torch

from cme295lab.pretraining.packing import PackedDataset
from cme295lab.pretraining.trainer import TrainConfig, Trainer, has_checkpoint
from cme295lab.transformer import DecoderLM, ModelConfig

SEQ = 16
NUM_STEPS = 40


def tiny_model(**changes):
    """A decoder of 3,000 parameters; the same each time."""
    torch.manual_seed(5)
    values = {"vocab_size": 32, "num_layers": 2, "dim": 16, "num_heads": 2, "mlp_dim": 24, "max_seq": SEQ}
    return DecoderLM(ModelConfig(**{**values, "tied_head": True, **changes}), attention="standard")


def tiny_data(seed=0):
    """Counting, from here and there, in documents of 3 to 11 tokens."""
    documents = [[(start + i) % 31 + 1 for i in range(3 + start % 9)] for start in range(60)]
    return PackedDataset(documents, seq=SEQ, seed=seed, end_token=0)


def tiny_config(**changes):
    values = {"num_steps": NUM_STEPS, "rows_per_step": 6, "micro_rows": 2, "seq": SEQ, "learning_rate": 1e-2}
    rest = {"warmup_steps": 4, "checkpoint_every": 3, "evaluate_every": 7}
    return TrainConfig(**{**values, **rest, **changes})


def dropout_model():
    """With dropout, so that a resumed run must draw the same random numbers."""
    return tiny_model(dropout=0.1)


def start_or_resume(folder):
    model, data, validation = dropout_model(), tiny_data(), {"counting": tiny_data(seed=1)}
    if has_checkpoint(folder):
        return Trainer.resume(folder, model, data, validation=validation, progress=False)
    return Trainer(model, data, tiny_config(), validation=validation, folder=folder, progress=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    start_or_resume(sys.argv[1]).run()
