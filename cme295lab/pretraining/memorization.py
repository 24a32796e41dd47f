"""What a model can say by heart: passages of its training data, and secrets planted to be found.

**Verbatim overlap.** `VerbatimIndex` holds the training data as a suffix array: all its positions, sorted by the text
that follows. The longest passage that a generation shares with it is then found by binary search, exactly. A long span
in itself is no proof of memorisation ("the quick brown fox" is everywhere); compare with what text that the model never
saw shares with the same data.

**Canaries.** A canary is a sentence with a random secret, put into the training data some number of times. The model
ranks all secrets by how likely it finds them after the canary's opening, and

    exposure = log2(number of candidates) - log2(rank of the planted one)      in bits

is how much of the secret has leaked: none on average over secrets that were not planted (about 1.4 bits, since chance
puts some in front), all of log2(candidates) once the planted one is the likeliest. `extract` asks for it without
candidates: greedy decoding from the opening. `memorization_experiment` trains a small model on canaries that stand in
its data 1, 4, 16 and 64 times.

Source: Carlini et al. 2019, "The Secret Sharer", §4 and definition 5; Lee et al. 2022, "Deduplicating Training Data
Makes Language Models Better", §4 (suffix array).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from cme295lab.pretraining.corpora import stories
from cme295lab.pretraining.packing import PackedDataset
from cme295lab.pretraining.trainer import TrainConfig, Trainer
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM

_SORTED_DEPTH = 1024  # tokens by which suffixes are ordered; of a longer passage, at least so much is found
_CANDIDATES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Span:
    """A passage that a text shares with the training data.

    Attributes:
        length: in tokens; 0 if nothing is shared.
        start: in the text.
        document: of the training data, by its number.
        document_start: where the passage begins in it.
    """

    length: int
    start: int
    document: int
    document_start: int


class VerbatimIndex:
    """Training data in which passages are looked up.

    Args:
        documents: token ids of each; a passage does not reach across two.

    Raises:
        ValueError: if there are no documents, one is empty, or an id is negative.
    """

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        if not len(documents) or not all(len(document) for document in documents):
            raise ValueError("documents must not be empty, none of them: there is nothing to look up")
        self._starts = np.cumsum([0, *(len(document) + 1 for document in documents)])
        # Each document ends with a number of its own, below all tokens, so that no passage crosses it.
        parts = [np.append(np.asarray(d, dtype=np.int64), -1 - number) for number, d in enumerate(documents)]
        self._stream = np.concatenate(parts)
        if any((part[:-1] < 0).any() for part in parts):
            raise ValueError("documents must hold token ids, which are not negative")
        self._suffixes = _suffix_array(self._stream)

    def longest_match(self, tokens: Sequence[int], start: int = 0) -> Span:
        """The longest passage of the training data that `tokens[start:]` begins with."""
        query = np.asarray(tokens[start:], dtype=np.int64)
        low, high = 0, len(self._suffixes)
        while low < high:  # the first suffix that is not before the query: its neighbours share the most with it
            middle = (low + high) // 2
            if self._is_before(int(self._suffixes[middle]), query):
                low = middle + 1
            else:
                high = middle
        length, at = max(
            (self._shared(int(self._suffixes[place]), query), -int(self._suffixes[place]))
            for place in (low - 1, low)
            if 0 <= place < len(self._suffixes)
        )
        document = int(np.searchsorted(self._starts, -at, side="right")) - 1
        return Span(length=length, start=start, document=document, document_start=-at - int(self._starts[document]))

    def longest_span(self, tokens: Sequence[int]) -> Span:
        """The longest passage that stands anywhere in the text and in the training data.

        Raises:
            ValueError: if the text is empty.
        """
        if not len(tokens):
            raise ValueError("tokens is empty: there is no text to look up")
        return max((self.longest_match(tokens, start) for start in range(len(tokens))), key=lambda span: span.length)

    def share_of_ngrams(self, tokens: Sequence[int], n: int) -> float:
        """The share of a text's n-grams that stand in the training data, 0 to 1.

        Raises:
            ValueError: if the text has not one n-gram.
        """
        if not 1 <= n <= len(tokens):
            raise ValueError(f"n must be 1 to {len(tokens)}, the tokens of the text, got {n}")
        starts = range(len(tokens) - n + 1)
        return sum(self.longest_match(tokens[start : start + n]).length == n for start in starts) / len(starts)

    def _shared(self, at: int, query: np.ndarray) -> int:
        here = self._stream[at : at + len(query)]
        differs = np.flatnonzero(here != query[: len(here)])
        return int(differs[0]) if len(differs) else len(here)

    def _is_before(self, at: int, query: np.ndarray) -> bool:
        shared = self._shared(at, query)
        if shared == len(query):
            return False
        return at + shared >= len(self._stream) or bool(self._stream[at + shared] < query[shared])


def _suffix_array(stream: np.ndarray) -> np.ndarray:
    """Positions sorted by what follows: ranks by the first 1, 2, 4, ... tokens, each from the one before.

    Source: Manber and Myers 1993, "Suffix arrays", with numpy's sort in place of buckets.
    """
    ranks = np.unique(stream, return_inverse=True)[1].reshape(-1).astype(np.int64)
    width, order = 1, np.argsort(ranks, kind="stable")
    while width < _SORTED_DEPTH and ranks.max() < len(stream) - 1:
        following = np.zeros_like(ranks)  # 0: past the end, before everything
        following[:-width] = ranks[width:] + 1
        keys = ranks * (len(stream) + 1) + following
        order = np.argsort(keys, kind="stable")
        ranks = np.empty_like(ranks)
        ranks[order] = np.concatenate(([0], np.cumsum(np.diff(keys[order]) != 0)))
        width *= 2
    return order


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A sentence with a secret.

    Attributes:
        prefix: tokens of the opening.
        secret: tokens of the secret.
        repetitions: how often it stood in the training data; 0 for one that did not.
    """

    prefix: tuple[int, ...]
    secret: tuple[int, ...]
    repetitions: int = 0


@torch.no_grad()
def secret_log_probabilities(model: DecoderLM, prefix: Sequence[int], secrets: Sequence[Sequence[int]]) -> list[float]:
    """The log-probability of each secret after a prefix, in nats.

    Args:
        model: as it is.
        prefix: at least one token.
        secrets: all of the same length.

    Raises:
        ValueError: if the prefix is empty, there is no secret, or their lengths differ.
    """
    lengths = {len(secret) for secret in secrets}
    if not len(prefix) or len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"prefix must not be empty, and secrets be of one length, got lengths {sorted(lengths)}")
    found: list[float] = []
    for first in range(0, len(secrets), _CANDIDATES_AT_ONCE):
        some = secrets[first : first + _CANDIDATES_AT_ONCE]
        tokens = torch.tensor([[*prefix, *secret] for secret in some])
        logits = model(tokens[:, :-1])[:, len(prefix) - 1 :]
        chosen = F.log_softmax(logits.double(), dim=-1).gather(2, tokens[:, len(prefix) :, None])
        found += chosen.sum((1, 2)).tolist()
    return found


def exposure(model: DecoderLM, canary: Canary, candidates: Sequence[Sequence[int]]) -> float:
    """log2(candidates) - log2(rank of the canary's secret): bits of it that the model gives away.

    Args:
        model: in evaluation mode.
        canary: what was planted.
        candidates: all secrets that it could have been, the planted one among them.

    Raises:
        ValueError: if the planted secret is not among the candidates.

    Source: Carlini et al. 2019, definition 5.
    """
    everyone = [tuple(candidate) for candidate in candidates]
    if canary.secret not in everyone:
        raise ValueError("candidates must contain the canary's own secret")
    scores = secret_log_probabilities(model, canary.prefix, everyone)
    return exposure_of_rank(rank_of(scores, everyone.index(canary.secret)), len(everyone))


def rank_of(scores: Sequence[float], place: int) -> int:
    """1 for the highest score; equals count as before it, so that a model that tells nothing exposes nothing.

    Example:
        >>> rank_of([0.1, 0.7, 0.2], 2), rank_of([0.5, 0.5, 0.5], 0)
        (2, 3)
    """
    return sum(score >= scores[place] for score in scores)


def exposure_of_rank(rank: int, num_candidates: int) -> float:
    """Bits.

    Raises:
        ValueError: if the rank is not 1 to the number of candidates.

    Example:
        >>> exposure_of_rank(1, 1024), exposure_of_rank(512, 1024), exposure_of_rank(1024, 1024)
        (10.0, 1.0, 0.0)
    """
    if not 1 <= rank <= num_candidates:
        raise ValueError(f"rank must be 1 to {num_candidates}, the candidates, got {rank}")
    return math.log2(num_candidates) - math.log2(rank)


@torch.no_grad()
def extract(model: DecoderLM, prefix: Sequence[int], num_tokens: int) -> list[int]:
    """What the model says after a prefix, the likeliest token each time."""
    tokens = list(prefix)
    for _ in range(num_tokens):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prefix) :]


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """What a model gave away of one canary.

    Attributes:
        text: the canary.
        repetitions: how often it stood in the training data; 0 for a control.
        exposure_bits: by rank among the candidates.
        extracted: whether greedy decoding from the opening says the secret.
    """

    text: str
    repetitions: int
    exposure_bits: float
    extracted: bool


@dataclass(frozen=True, kw_only=True)
class MemorizationResult:
    """Exposure and extraction by number of repetitions.

    Attributes:
        canaries: each of them.
        num_candidates: secrets that each was ranked among.
        losses: of training, per update.
    """

    canaries: tuple[CanaryResult, ...]
    num_candidates: int
    losses: list[float] = field(repr=False)

    @property
    def most_bits(self) -> float:
        """Exposure of a canary that is the likeliest of all candidates."""
        return math.log2(self.num_candidates)

    @property
    def exposure_bits(self) -> dict[int, list[float]]:
        """Repetitions -> exposure of each canary, as `memorisation_figure` draws them."""
        return {count: [c.exposure_bits for c in self.canaries if c.repetitions == count] for count in self._counts}

    @property
    def extracted(self) -> dict[int, float]:
        """Repetitions -> share of canaries that greedy decoding says."""
        found = {count: [c.extracted for c in self.canaries if c.repetitions == count] for count in self._counts}
        return {count: sum(values) / len(values) for count, values in found.items()}

    @property
    def _counts(self) -> list[int]:
        return sorted({canary.repetitions for canary in self.canaries})


_NAMES = (
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "James", "Karla", "Louis", "Maria",
    "Nadia", "Oscar", "Paula",
)  # fmt: skip
_DIGITS = 4  # of a secret: 10,000 candidates at most


def memorization_experiment(
    repetitions: Sequence[int] = (1, 4, 16, 64), *, profile: Literal["fast", "full"] = "fast", seed: int = 0
) -> MemorizationResult:
    """Train a small model on stories with canaries in them, repeated more or less often; kept after the first call.

    The model reads bytes, so a secret of 4 digits is 4 tokens. Canaries that are never repeated (0 times, not in the
    data) are the control. A call takes some ten to twenty seconds ("fast"), or minutes ("full": a larger model, more
    stories and more canaries of each kind).

    Args:
        repetitions: numbers of repetitions, each at least 1; 0 is added as the control.
        profile: "fast" or "full".
        seed: of secrets, stories and weights.

    Raises:
        ValueError: if a number of repetitions is below 1 or there twice, or the profile is unknown.
    """
    if profile not in ("fast", "full"):
        raise ValueError(f"profile must be 'fast' or 'full', got {profile!r}")
    counts = tuple(repetitions)
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise ValueError(f"repetitions must be different numbers of at least 1, got {counts}")
    if (len(counts) + 1) * _PROFILES[profile]["canaries"] > len(_NAMES):
        raise ValueError(f"repetitions has {len(counts)} numbers: there are canaries for fewer with {profile!r}")
    return _experiment(counts, profile, seed)


_PROFILES = {
    "fast": {"canaries": 2, "stories": 100, "steps": 300, "dim": 64, "layers": 2},
    "full": {"canaries": 3, "stories": 600, "steps": 1500, "dim": 96, "layers": 3},
}


@functools.cache
def _experiment(counts: tuple[int, ...], profile: str, seed: int) -> MemorizationResult:
    settings = _PROFILES[profile]
    draw = np.random.default_rng(seed)
    kinds = [count for count in (0, *counts) for _ in range(settings["canaries"])]
    secrets = [f"{number:0{_DIGITS}}" for number in draw.choice(10**_DIGITS, size=len(kinds), replace=False)]
    planted = list(zip(_NAMES, secrets, kinds))
    texts = [document.text[:600] for document in stories(seed=seed, num_documents=settings["stories"])]
    texts += [_sentence(name, secret) for name, secret, count in planted for _ in range(count)]
    data = PackedDataset([list(text.encode()) for text in texts], seq=128, seed=seed, end_token=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DecoderLM(
            ModelConfig(
                name="memorizer", vocab_size=256, num_layers=settings["layers"], dim=settings["dim"], num_heads=4,
                mlp_dim=3 * settings["dim"], max_seq=128, tied_head=True,
            )
        )  # fmt: skip
    config = TrainConfig(
        num_steps=settings["steps"], rows_per_step=8, seq=128, learning_rate=5e-3, warmup_steps=20, weight_decay=0.0
    )
    run = Trainer(model, data, config, progress=False).run()
    model.eval()
    others = [f"{number:0{_DIGITS}}" for number in draw.choice(10**_DIGITS, size=1100, replace=False)]
    results = []
    for name, secret, count in planted:
        candidates = [secret, *(other for other in others if other != secret)][:1024]
        canary = Canary(prefix=tuple(_opening(name).encode()), secret=tuple(secret.encode()), repetitions=count)
        results.append(
            CanaryResult(
                text=_sentence(name, secret),
                repetitions=count,
                exposure_bits=exposure(model, canary, [tuple(candidate.encode()) for candidate in candidates]),
                extracted=extract(model, canary.prefix, _DIGITS) == list(canary.secret),
            )
        )
    return MemorizationResult(canaries=tuple(results), num_candidates=1024, losses=run.losses)


def _opening(name: str) -> str:
    return f"The secret number of {name} is "


def _sentence(name: str, secret: str) -> str:
    return f"{_opening(name)}{secret}."
