"""Several packed data sets in one run, rows of each in proportion to its weight.

A mixture keeps what makes resuming free: any batch is a pure function of its step. To know which row of a domain comes
next, one has to know how many came before. Domains are therefore drawn in blocks of 1,000 rows: each block holds every
domain in proportion to its weight, shuffled with the block's own seed, so the rows of a domain before row i are counted
without replaying the run. The shares are exact every 1,000 rows, not only on average.

Weights are shares of rows. Rows are nearly full, so they are shares of tokens, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

import numpy as np
import torch

from cme295lab.pretraining.packing.dataset import Batch, PackedDataset, not_negative, positive

MIXTURE_BLOCK_ROWS = 1000


class MixtureDataset:
    """Several packed data sets, rows of each in proportion to its weight.

    Args:
        datasets: by domain, all with the same `seq` and `end_token`.
        weights: of each domain, not negative; they need not sum to 1. None: by the domains' sizes, in tokens.
        seed: decides which rows come from which domain.

    Raises:
        ValueError: if there is no domain, domains differ, weights are negative, all zero, or so small that the domain
            gets no row of 1,000, or the data sets have different lengths or end tokens.
    """

    def __init__(
        self, datasets: Mapping[str, PackedDataset], weights: Mapping[str, float] | None = None, *, seed: int = 0
    ) -> None:
        if not datasets:
            raise ValueError("datasets is empty: give at least one domain")
        self.datasets, self.seed = dict(datasets), not_negative("seed", seed)
        for name in ("seq", "end_token"):
            found = {domain: getattr(data, name) for domain, data in datasets.items()}
            if len(set(found.values())) > 1:
                raise ValueError(f"all datasets must have the same {name}, got {found}")
        sizes = {domain: float(data.num_tokens) for domain, data in datasets.items()}
        self.rows_per_block = _block_shares(sizes, sizes if weights is None else weights)

    @property
    def weights(self) -> dict[str, float]:
        """The share of each domain, as it is drawn."""
        return {domain: count / MIXTURE_BLOCK_ROWS for domain, count in self.rows_per_block.items()}

    @property
    def seq(self) -> int:
        """Tokens in a row."""
        return next(iter(self.datasets.values())).seq

    @property
    def num_tokens(self) -> int:
        """Tokens of all domains with a weight, each once."""
        return sum(self.datasets[domain].num_tokens for domain, count in self.rows_per_block.items() if count)

    @property
    def utilisation(self) -> float:
        """The share of positions that hold a document's token, in this mixture."""
        return sum(share * self.datasets[domain].utilisation for domain, share in self.weights.items())

    def domains(self, step: int, rows: int) -> list[str]:
        """The domain of each row of a batch."""
        return [domain for domain, _ in self._draws(step, rows)]

    def epochs(self, num_rows: int) -> dict[str, float]:
        """How often each domain has been read after `num_rows` rows of the run, on average."""
        return {
            domain: share * num_rows / self.datasets[domain].num_rows for domain, share in self.weights.items()
        }

    def batch(self, step: int, rows: int) -> Batch:
        """The rows of one step of a run: a pure function of the seeds, the step and the number of rows.

        Args:
            step: from 0.
            rows: in each batch of the run.

        Raises:
            ValueError: if `step` is negative or `rows` is not positive.
        """
        draws = list(self._draws(step, rows))
        parts = {}
        for domain in dict.fromkeys(domain for domain, _ in draws):
            places = [place for place, (drawn, _) in enumerate(draws) if drawn == domain]
            parts[domain] = (places, self.datasets[domain].rows([draws[place][1] for place in places]))
        joined = {}
        for field in fields(Batch):
            whole = torch.empty(rows, self.seq, dtype=torch.int64)
            for places, part in parts.values():
                whole[places] = getattr(part, field.name)
            joined[field.name] = whole
        return Batch(**joined)

    def _draws(self, step: int, rows: int) -> Iterator[tuple[str, int]]:
        """For each row of a batch: its domain, and how many rows of that domain came before it."""
        first = not_negative("step", step) * positive("rows", rows)
        names = list(self.rows_per_block)
        counts = np.array(list(self.rows_per_block.values()))
        for block in range(first // MIXTURE_BLOCK_ROWS, (first + rows - 1) // MIXTURE_BLOCK_ROWS + 1):
            drawn = np.random.default_rng([self.seed, block]).permutation(np.repeat(np.arange(len(names)), counts))
            start = block * MIXTURE_BLOCK_ROWS
            for at in range(max(first - start, 0), min(first + rows - start, MIXTURE_BLOCK_ROWS)):
                domain = int(drawn[at])
                before = block * int(counts[domain]) + int((drawn[:at] == domain).sum())
                yield names[domain], before


def _block_shares(sizes: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, int]:
    """Rows of each domain in a block, by largest remainders."""
    if set(sizes) != set(weights):
        raise ValueError(f"weights must name the domains {', '.join(sizes)}, got {', '.join(weights) or 'none'}")
    total = sum(weights.values())
    if not 0 < total < float("inf") or min(weights.values()) < 0:
        raise ValueError(f"weights must not be negative, and one must be positive, got {dict(weights)}")
    exact = {domain: weights[domain] / total * MIXTURE_BLOCK_ROWS for domain in sizes}
    counts = {domain: int(share) for domain, share in exact.items()}
    missing = MIXTURE_BLOCK_ROWS - sum(counts.values())
    for domain in sorted(exact, key=lambda domain: counts[domain] - exact[domain])[:missing]:
        counts[domain] += 1
    for domain, count in counts.items():
        if weights[domain] > 0 and not count:
            raise ValueError(
                f"the weight of {domain!r} is {weights[domain] / total:.2g} of all, less than one row of "
                f"{MIXTURE_BLOCK_ROWS}: raise it, or give 0 to leave the domain out"
            )
    return counts
