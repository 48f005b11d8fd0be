"""Everything that decides which triplets a round holds, given corpus and embeddings."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import InputError, at_least_one, check_types
from pipeline.triplets.draws import draw_key

KINDS = ("semi-hard", "hard")  # a triplet's kind is stored as its position here


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Everything that decides which triplets a round holds, given corpus and embeddings.

    shares: what share of the pairs tries each kind first; a pair falls back to the other kinds listed.
    pick: `random`, uniform over all rows that qualify, or `nearest`, the smallest d_an, ties to the lower row.
    min_negative_distance: negatives with d_an below it are left out (near-duplicates under another label).
    min_negative_ratio: negatives with d_an < ratio * d_ap are left out (the positive-aware filter of
      NV-Retriever, https://arxiv.org/abs/2407.15831, on distances).
    """

    shares: tuple[tuple[str, float], ...] = (("semi-hard", 1.0),)
    pick: Literal["random", "nearest"] = "random"
    margin: float = 0.2
    positives: int = 1
    seed: int = 0
    round: int = 0
    min_negative_distance: float = 0.0
    min_negative_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        kinds = [kind for kind, _ in self.shares]
        if not kinds or len(set(kinds)) != len(kinds) or not set(kinds) <= set(KINDS):
            raise InputError(f"negatives must be different kinds out of {', '.join(KINDS)}; found {kinds}")
        if any(not share > 0 for _, share in self.shares):
            raise InputError(f"every kind's share must be above 0; found {dict(self.shares)}")
        if not 0 < self.margin <= 4:
            raise InputError(f"margin must be above 0 and at most 4 (distances are 0 to 4); found {self.margin}")
        at_least_one(positives=self.positives)
        if not 0 <= self.min_negative_distance < 4:
            raise InputError(f"min_negative_distance must be in [0, 4); found {self.min_negative_distance}")
        if not 0 <= self.min_negative_ratio <= 100:
            raise InputError(f"min_negative_ratio must be 0 to 100; found {self.min_negative_ratio}")

    @property
    def kinds(self) -> tuple[int, ...]:
        return tuple(KINDS.index(kind) for kind, _ in self.shares)

    def key(self, purpose: str) -> np.uint64:
        """The key of one kind of draw: a new round, seed or purpose draws anew."""
        return draw_key(self.seed, self.round, purpose)
