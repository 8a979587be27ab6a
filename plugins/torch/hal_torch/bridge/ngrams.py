"""Counts of n-grams of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hal_torch.bridge.node import Call, OpNode, Refused
from hal_torch.bridge.table import operator


class NgramCounts(torch.nn.Module):
    """Counts how often n-grams occur in rows of numbers.

    Args:
        ngrams: What is counted, all of one length per entry.
        places: For each n-gram, its place in the result.
        n_places: Length of a result.
        max_skip: How many numbers may lie between two that belong to an n-gram, the same number everywhere.
        weights: Factors of the counts, by place; None for 1.
        once: Whether an n-gram that occurs counts one, however often it does.
    """

    def __init__(
        self,
        ngrams: Sequence[Sequence[int]],
        places: Sequence[int],
        n_places: int,
        max_skip: int,
        weights: Sequence[float] | None,
        once: bool,
    ) -> None:
        super().__init__()
        self.n_places = n_places
        self.max_skip = max_skip
        self.once = once
        self.lengths = sorted({len(ngram) for ngram in ngrams})
        for length in self.lengths:
            chosen = [
                (ngram, place) for ngram, place in zip(ngrams, places, strict=True) if len(ngram) == length
            ]
            self.register_buffer(f"ngrams_{length}", torch.tensor([list(ngram) for ngram, _ in chosen]))
            self.register_buffer(f"places_{length}", torch.tensor([place for _, place in chosen]))
        self.register_buffer("weights", None if weights is None else torch.tensor(list(weights)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[rows, places], or float32[places] for one row."""
        rows = x.reshape(1, -1) if x.dim() < 2 else x
        counts = torch.zeros(rows.shape[0], self.n_places, dtype=torch.float32, device=x.device)
        for length in self.lengths:
            ngrams, places = self.get_buffer(f"ngrams_{length}"), self.get_buffer(f"places_{length}")
            # Single numbers are counted once: nothing lies between them.
            for step in range(1, 2 if length == 1 else self.max_skip + 2):
                reach = step * (length - 1) + 1
                if reach > rows.shape[1]:
                    break
                windows = rows.unfold(1, reach, 1)[:, :, ::step]
                hits = (windows.unsqueeze(2) == ngrams).all(-1).sum(1)
                counts = counts.index_add(1, places, hits.to(torch.float32))
        if self.once:
            counts = (counts > 0).to(torch.float32)
        if self.weights is not None:
            counts = counts * self.weights
        return counts.reshape(-1) if x.dim() < 2 else counts


@operator("TfIdfVectorizer", 9)
def tf_idf(node: OpNode) -> Call:
    """Weighted counts of n-grams."""
    pool, starts = node.integers("pool_int64s"), node.integers("ngram_counts") or ()
    places, mode = node.integers("ngram_indexes") or (), node.text("mode", "")
    if not pool:
        raise Refused("n-grams of strings (attribute `pool_strings`) are not translated, of numbers are")
    if mode not in ("TF", "IDF", "TFIDF"):
        raise Refused(f"mode `{mode}` is not one of TF, IDF, TFIDF")
    shortest, longest = node.integer("min_gram_length", 1), node.integer("max_gram_length", 1)
    ngrams, kept, index = [], [], 0
    for length, (start, end) in enumerate(zip(starts, (*starts[1:], len(pool)), strict=True), 1):
        for first in range(start, end - length + 1, length):
            if shortest <= length <= longest:
                ngrams.append(pool[first : first + length])
                kept.append(places[index])
            index += 1
    if not ngrams:
        raise Refused(f"there are no n-grams of the lengths {shortest} to {longest}")
    weights = node.numbers("weights") if mode != "TF" else None
    skip = node.integer("max_skip_count", 0)
    return Call(NgramCounts(ngrams, kept, max(places) + 1, skip, weights, mode == "IDF"), (node.input(0),))
