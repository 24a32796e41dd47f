"""The course's own models, made with everything in this room: corpus, vocabulary, packing, training, weights.

    python -m cme295lab.pretraining.course_model --name course-4m

trains "course-4m" (4.0 million parameters) or "course-draft" (0.35 million, the same vocabulary: it drafts for the
other in speculative decoding) and writes the folder that `load_pretrained(name)` reads, in bf16, with `training.json`
beside the weights: the recipe, losses by domain, the corpus, what it took.

The recipe is for few tokens: a laptop's two cores read about a million in five minutes with course-4m, a quarter of a
token per parameter where Chinchilla asks for 20. So

- steps are small (1,024 tokens): more of them, rather than smoother ones;
- weights start at a standard deviation of 1 / √inputs, not the 0.02 that suits widths of a thousand;
- the learning rate stays up for most of the run (WSD) and falls within the last fifth;
- the generated domains, which a small model can learn, have a larger share than their size.

The weights in the package come from this program. On another Python version the corpus is another one, and so are the
weights; `training.json` has the fingerprint.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cme295lab.pretraining.corpora import Corpus, course_corpus, stories
from cme295lab.pretraining.packing import MixtureDataset, PackedDataset
from cme295lab.pretraining.tokenizer import train_tokenizer
from cme295lab.pretraining.trainer import TrainConfig, Trainer, TrainingRun, evaluate, has_checkpoint
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.layers import ResidualLinear
from cme295lab.transformer.presets import preset
from cme295lab.transformer.pretrained.hub import save_pretrained
from cme295lab.transformer.pretrained.load import load_pretrained
from cme295lab.transformer.pretrained.registry import WEIGHTS_FOLDER
from cme295lab.transformer.text import TextTokenizer

HELD_OUT_SEED = 295_295  # of stories that no corpus has: what the shipped weights are checked against
HELD_OUT_STORIES = 40
REPORT = "training.json"
_SEED = 295


@dataclass(frozen=True, kw_only=True)
class CourseRecipe:
    """How one of the course's models is trained.

    Attributes:
        name: of the preset, and of the folder.
        weights: domain -> share of the rows.
        train: settings of the run.
    """

    name: str
    weights: dict[str, float]
    train: TrainConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `training.json`."""
        return {**asdict(self), "train": self.train.to_dict()}


def course_recipe(name: str, *, num_steps: int | None = None) -> CourseRecipe:
    """The recipe of one of the course's models.

    Args:
        name: "course-4m" or "course-draft".
        num_steps: another length than the recipe's own, of at least 20 steps.

    Raises:
        ValueError: if there is no recipe of that name, or the run is too short.
    """
    known = {"course-4m": (1000, 2e-3), "course-draft": (1200, 4e-3)}
    if name not in known:
        raise ValueError(f"there is no recipe for {name!r}; there is one for {' and '.join(known)}")
    steps, learning_rate = known[name]
    steps = steps if num_steps is None else num_steps
    if steps < 20:
        raise ValueError(f"num_steps must be at least 20, for a warm-up and a decay, got {steps}")
    return CourseRecipe(
        name=name,
        weights={"english": 0.35, "code": 0.35, "arithmetic": 0.1, "stories": 0.2},
        train=TrainConfig(
            num_steps=steps, rows_per_step=4, seq=256, learning_rate=learning_rate, warmup_steps=steps // 20,
            schedule="wsd", decay_shape="1-sqrt", evaluate_every=max(1, steps // 4), evaluation_rows=32,
            checkpoint_every=50,
        ),
    )  # fmt: skip


def course_data(
    corpus: Corpus, tokenizer: TextTokenizer, recipe: CourseRecipe
) -> tuple[MixtureDataset, dict[str, PackedDataset]]:
    """The corpus as packed rows: a mixture to train on, and each domain's validation text.

    Raises:
        ValueError: if the tokenizer has no end token.
    """
    if tokenizer.end_token is None:
        raise ValueError("the tokenizer has no end token: documents could not be told apart")

    def pack(texts: Sequence[str], seed: int) -> PackedDataset:
        return PackedDataset(
            tokenizer.encode_batch(texts), seq=recipe.train.seq, seed=seed, end_token=tokenizer.end_token or 0
        )

    train = {domain: pack([d.text for d in documents], _SEED) for domain, documents in corpus.train.items()}
    validation = {domain: pack([d.text for d in documents], 0) for domain, documents in corpus.validation.items()}
    return MixtureDataset(train, recipe.weights, seed=_SEED), validation


def initialize_for_width(model: DecoderLM, seed: int) -> DecoderLM:
    """Draw all matrices anew, with a standard deviation of 1 / √inputs, as narrow models need.

    Those that write into the residual stream are smaller by √(2 layers), of which each adds one; the embedding, which
    is the head as well, has 1 / √width.

    Args:
        model: changed in place, and returned.
        seed: of the weights; the caller's random numbers stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    smaller = (2 * model.config.num_layers) ** -0.5
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                scale = smaller if isinstance(module, ResidualLinear) else 1.0
                module.weight.normal_(std=scale * module.weight.shape[1] ** -0.5, generator=generator)
    return model


@dataclass(frozen=True, kw_only=True, eq=False)
class CourseModel:
    """A trained model of the course, as it is before its weights are written.

    Attributes:
        recipe: how it was trained.
        model: in fp32.
        tokenizer: its vocabulary.
        run: the losses.
        corpus_fingerprint: of what it read.
        cpu_s: seconds of processor time, all threads together, of this process; None after a resumption.
    """

    recipe: CourseRecipe
    model: DecoderLM
    tokenizer: TextTokenizer
    run: TrainingRun
    corpus_fingerprint: str
    cpu_s: float | None


def train_course_model(
    name: str,
    *,
    num_steps: int | None = None,
    profile: Literal["full", "fast"] = "full",
    tokenizer: TextTokenizer | None = None,
    run_folder: str | Path | None = None,
    progress: bool = True,
) -> CourseModel:
    """Train one of the course's models, from the corpus to the last step.

    Args:
        name: "course-4m" or "course-draft".
        num_steps: another length than the recipe's own.
        profile: of the corpus.
        tokenizer: a vocabulary; None trains one on the corpus.
        run_folder: for checkpoints; a run that is there is resumed.
        progress: whether to draw a progress bar.
    """
    recipe = course_recipe(name, num_steps=num_steps)
    config = preset(name)
    corpus = course_corpus(profile)
    if tokenizer is None:
        texts = [document.text for documents in corpus.train.values() for document in documents]
        tokenizer = train_tokenizer(texts, config.vocab_size)
    data, validation = course_data(corpus, tokenizer, recipe)
    model = initialize_for_width(DecoderLM(config), _SEED)
    resumed = run_folder is not None and has_checkpoint(run_folder)
    if run_folder is not None and resumed:
        trainer = Trainer.resume(run_folder, model, data, validation=validation, progress=progress)
    else:
        trainer = Trainer(model, data, recipe.train, validation=validation, folder=run_folder, progress=progress)
    start = time.process_time()
    run = trainer.run()
    return CourseModel(
        recipe=recipe,
        model=model.eval(),
        tokenizer=tokenizer,
        run=run,
        corpus_fingerprint=corpus.fingerprint,
        cpu_s=None if resumed else time.process_time() - start,
    )


def held_out_loss(model: DecoderLM, tokenizer: TextTokenizer) -> float:
    """The loss on generated stories that no corpus has, in nats per token."""
    texts = [document.text for document in stories(seed=HELD_OUT_SEED, num_documents=HELD_OUT_STORIES)]
    data = PackedDataset(tokenizer.encode_batch(texts), seq=256, end_token=tokenizer.end_token or 0)
    return evaluate(model, data)


def save_course_model(trained: CourseModel, folder: str | Path) -> dict[str, Any]:
    """Write weights in bf16, the vocabulary and `training.json`, and return what the last one says.

    Args:
        trained: the model.
        folder: where to; what was there is replaced.
    """
    folder = save_pretrained(folder, trained.model, trained.tokenizer, dtype=torch.bfloat16)
    shipped = load_pretrained(folder)
    tokens_per_step = trained.recipe.train.rows_per_step * trained.recipe.train.seq
    report = {
        "recipe": trained.recipe.to_dict(),
        "num_parameters": trained.model.config.num_parameters,
        "num_tokens": trained.run.num_steps * tokens_per_step,
        "losses": trained.run.evaluations[-1]["losses"],
        "evaluations": trained.run.evaluations,
        "held_out_stories": {
            "seed": HELD_OUT_SEED,
            "num_documents": HELD_OUT_STORIES,
            "loss": held_out_loss(shipped.model, shipped.tokenizer),
        },
        "corpus_fingerprint": trained.corpus_fingerprint,
        "seconds": round(sum(tokens_per_step / record["tokens_per_s"] for record in trained.run.records), 1),
        "cpu_seconds": None if trained.cpu_s is None else round(trained.cpu_s, 1),
        "num_threads": torch.get_num_threads(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: train, write, and print the losses."""
    parser = argparse.ArgumentParser(prog="python -m cme295lab.pretraining.course_model", description=main.__doc__)
    parser.add_argument("--name", default="course-4m", help="course-4m or course-draft")
    parser.add_argument("--num-steps", type=int, help="another length than the recipe's own")
    parser.add_argument("--profile", choices=("full", "fast"), default="full", help="of the corpus")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a vocabulary; without it, one is trained")
    parser.add_argument("--run-folder", type=Path, help="for checkpoints; a run that is there is resumed")
    parser.add_argument("--output", type=Path, help="where the weights go; without it, into the package")
    given = parser.parse_args(arguments)
    trained = train_course_model(
        given.name, num_steps=given.num_steps, profile=given.profile, run_folder=given.run_folder,
        tokenizer=None if given.tokenizer is None else TextTokenizer.load(given.tokenizer),
    )  # fmt: skip
    if trained.run.interrupted:
        print(f"stopped after {trained.run.num_steps} steps; the same command with --run-folder goes on")
        return
    report = save_course_model(trained, given.output or WEIGHTS_FOLDER / given.name)
    print(json.dumps({key: report[key] for key in ("losses", "held_out_stories", "seconds", "cpu_seconds")}, indent=2))


if __name__ == "__main__":
    main()
