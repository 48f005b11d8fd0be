"""Packs that are not written yet, and what shapes them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import InputError, check_types
from pipeline.triplets.rows import Triplets

MAX_ROWS = 2048  # a pack's triplets grow with the square of its rows
LONE = 3  # pack_rows for one triplet a record: no fill, no triplets of the pack's own


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What shares a record: P classes x K rows with all triplets among them."""

    packs: Literal["triplets", "spread"] = "triplets"
    """begin with triplets over the corpus; or spread: every row, its pairs and its classes far apart"""
    pack_rows: int = 128
    """rows a record holds (P x K); 3: lone triplets"""
    fill: int = 4
    """rows that each class in a record is filled to (K)"""
    pack_pick: Literal["random", "nearest"] | None = None
    """for triplets inside the packs (as --pick)"""

    def __post_init__(self) -> None:
        check_types(self)
        if self.fill < 2:
            raise InputError(f"fill must be at least 2, for a class alone in a pack gives no pair; found {self.fill}")
        if not self.lone and not 2 * self.fill <= self.pack_rows <= MAX_ROWS:
            raise InputError(
                f"pack_rows must be {LONE} (lone triplets), or hold two classes of {self.fill} (fill) and be at most "
                f"{MAX_ROWS}; found {self.pack_rows}"
            )
        if self.lone and (self.packs == "spread" or self.pack_pick):
            what = "packs spread" if self.packs == "spread" else f"pack_pick {self.pack_pick}"
            raise InputError(f"{what} does nothing for lone triplets (pack_rows {LONE}); leave one out")

    @property
    def lone(self) -> bool:
        return self.pack_rows == LONE


@dataclass(frozen=True, kw_only=True)
class Packs:
    """Some packs of a shard, numbered from `first` on.

    rows: int64, of one pack after the other; starts, triplet_starts: int64 [packs + 1], where each pack's rows and
    triplets begin.
    """

    shard: int
    rows: np.ndarray
    starts: np.ndarray
    triplets: Triplets
    triplet_starts: np.ndarray
    first: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def names(self) -> list[str]:
        """Of the packs, for their draws."""
        return [f"{self.shard}/{self.first + n}" for n in range(len(self))]

    def take(self, first: int, last: int) -> "Packs":
        """The packs first to last - 1."""
        row, triplet = self.starts[[first, last]], self.triplet_starts[[first, last]]
        return Packs(
            shard=self.shard, rows=self.rows[slice(*row)], starts=self.starts[first : last + 1] - row[0],
            triplets=self.triplets.take(slice(*triplet)),
            triplet_starts=self.triplet_starts[first : last + 1] - triplet[0], first=self.first + first,
        )  # fmt: skip
