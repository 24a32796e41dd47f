"""Decoding: how a model that predicts one token becomes an answer.

Read in this order: ``sampling`` (from logits to the distribution that is drawn from: temperature, top-k, top-p, min-p,
repetition penalty), ``generation`` (greedy and sampling, token by token, prompts of different lengths, seeds, endings),
``beam`` (several answers side by side, length penalties, the tree of candidates), ``speculative`` (a draft proposes,
the model checks; the same distribution). ``prompts``, ``context`` and ``endings`` are what they share: checking and
padding, the cache or none, and when an answer is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.transformer.decoding.beam import Beam, BeamNode, BeamResult, beam_search, length_penalty_divisor
    from cme295lab.transformer.decoding.generation import Generation, generate
    from cme295lab.transformer.decoding.sampling import (
        Sampling,
        apply_temperature,
        draw,
        keep_min_p,
        keep_top_k,
        keep_top_p,
        next_token_probabilities,
        penalize_repetition,
    )
    from cme295lab.transformer.decoding.speculative import (
        SpeculativeResult,
        acceptance_probability,
        accepts,
        expected_speedup,
        expected_tokens_per_step,
        residual,
        speculate,
    )

_HOME = {
    "Beam": "beam",
    "BeamNode": "beam",
    "BeamResult": "beam",
    "Generation": "generation",
    "Sampling": "sampling",
    "SpeculativeResult": "speculative",
    "acceptance_probability": "speculative",
    "accepts": "speculative",
    "apply_temperature": "sampling",
    "beam_search": "beam",
    "draw": "sampling",
    "expected_speedup": "speculative",
    "expected_tokens_per_step": "speculative",
    "generate": "generation",
    "keep_min_p": "sampling",
    "keep_top_k": "sampling",
    "keep_top_p": "sampling",
    "length_penalty_divisor": "beam",
    "next_token_probabilities": "sampling",
    "penalize_repetition": "sampling",
    "residual": "speculative",
    "speculate": "speculative",
}
_MODULES = ("sampling", "generation", "beam", "speculative", "prompts", "context", "endings")

__all__ = [
    "Sampling",
    "next_token_probabilities",
    "apply_temperature",
    "keep_top_k",
    "keep_top_p",
    "keep_min_p",
    "penalize_repetition",
    "draw",
    "generate",
    "Generation",
    "beam_search",
    "BeamResult",
    "Beam",
    "BeamNode",
    "length_penalty_divisor",
    "speculate",
    "SpeculativeResult",
    "acceptance_probability",
    "accepts",
    "residual",
    "expected_tokens_per_step",
    "expected_speedup",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
