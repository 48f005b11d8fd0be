"""What travels through mining: blocks of rows, pairs with their slots, what a scan found, triplets; the
grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.triplets.kernels import compiled

GRID = 2048.0  # stored embeddings are multiples of 1 / GRID
NONE = np.iinfo(np.int64).max  # "no row": larger than every row, so that ties to the lower row just work


def to_grid(embeddings: np.ndarray) -> np.ndarray:
    """Rounds L2-normalised float32 [rows, dim] to multiples of 2^-11, and keeps their lengths.

    Many coordinates that are all rounded up, or all down, would make a vector longer or shorter: by a twentieth for
    pixels. So some are rounded the other way, those where that costs least, until the length is as near 1 as it gets
    without being above. Distances 2 - 2 s move by at most about .002 and are never negative.
    """
    rounded = np.empty(np.shape(embeddings), np.float32)
    _round_rows(np.ascontiguousarray(embeddings, np.float32), rounded)
    return rounded


@compiled
def _round_rows(embeddings, rounded):
    enough = GRID * GRID / 4096  # of a squared length of 1
    for i in range(len(embeddings)):
        exact = np.abs(embeddings[i].astype(np.float64)) * GRID
        size = np.rint(exact)
        missing = GRID * GRID - (size * size).sum()  # of the squared length, a whole number
        if missing < 0 or missing > enough:
            sign = 1.0 if missing > 0 else -1.0
            gain = 2 * size + sign  # what one unit more, or less, changes
            limit = 0.0 if sign > 0 else -enough
            for j in np.argsort((1 - 2 * sign * (exact - size)) / np.maximum(gain, 1), kind="mergesort"):
                if 0 <= missing <= enough:
                    break
                if gain[j] > 0 and abs(missing) - gain[j] >= limit:
                    size[j] += sign
                    missing -= sign * gain[j]
            while missing < 0:  # no step is so short: the shortest that is long enough, or else the longest
                step = 2 * size - 1
                j = np.argmin(np.where(step >= -missing, step, np.inf)) if step.max() >= -missing else np.argmax(step)
                missing += step[j]
                size[j] -= 1
        for j in range(len(size)):
            rounded[i, j] = np.copysign(size[j] / GRID, embeddings[i, j])


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of the corpus, ascending: the anchors of a work item, or a block of columns.

    row: int64 [n]; embedding: float32 [n, dim], L2-normalised, on the grid.
    content: int64 [n], equal where payloads are equal; group: int64 [n], -1 without a group. Either is None
      where the corpus has no copies or no groups.
    """

    row: np.ndarray
    embedding: np.ndarray
    content: np.ndarray | None = None
    group: np.ndarray | None = None

    def take(self, where: np.ndarray | slice) -> "Block":
        return Block(
            row=self.row[where],
            embedding=self.embedding[where],
            content=None if self.content is None else self.content[where],
            group=None if self.group is None else self.group[where],
        )

    @staticmethod
    def concatenate(parts: Sequence["Block"]) -> "Block":
        return Block(
            row=np.concatenate([part.row for part in parts]),
            embedding=np.concatenate([part.embedding for part in parts]),
            content=_concatenated([part.content for part in parts]),
            group=_concatenated([part.group for part in parts]),
        )


def _concatenated(codes: list[np.ndarray | None]) -> np.ndarray | None:
    there = [code for code in codes if code is not None]
    return np.concatenate(there) if there else None


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Anchors with their positives and the slots that a scan has to fill.

    own: int64 [n, 2], the row range of each anchor's class.
    positive: int64 [n, P], rows, -1 where the class has fewer; similarity: float32 [n, P], s of anchor and positive.
    first_kind: int8 [n, P], the kind that the pair tries first.
    lo, hi: float32 [n, Q], slot q wants lo < s <= hi. `slot[kind]` holds the P slots of a kind, `watch` the
      slots that only tell whether a distance guard left a row out.
    """

    anchors: Block
    own: np.ndarray
    positive: np.ndarray
    similarity: np.ndarray
    first_kind: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    slot: dict[int, np.ndarray]
    watch: dict[int, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The rows that slots hold so far. Keeping the best is associative and commutative: see `merge`.

    similarity: float32 [n, Q], -inf where empty; row: int64 [n, Q], NONE where empty.
    guarded: bool [n, P], whether a guard left out a row that would have qualified for the pair.
    """

    similarity: np.ndarray
    row: np.ndarray
    guarded: np.ndarray

    @staticmethod
    def nothing(pairs: Pairs) -> "Found":
        return Found(
            similarity=np.full(pairs.lo.shape, -np.inf, np.float32),
            row=np.full(pairs.lo.shape, NONE, np.int64),
            guarded=np.zeros(pairs.positive.shape, bool),
        )


@dataclass(frozen=True, kw_only=True)
class Triplets:
    """Columns of equal length: int64 rows anchor, positive, negative; int8 kind (see KINDS); float32 d_ap, d_an."""

    anchor: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    kind: np.ndarray
    d_ap: np.ndarray
    d_an: np.ndarray

    def __len__(self) -> int:
        return len(self.anchor)

    def take(self, where: np.ndarray | slice) -> "Triplets":
        return Triplets(**{name: getattr(self, name)[where] for name in Triplets.__dataclass_fields__})

    @staticmethod
    def none() -> "Triplets":
        rows, distances = np.empty(0, np.int64), np.empty(0, np.float32)
        kinds = np.empty(0, np.int8)
        return Triplets(anchor=rows, positive=rows, negative=rows, kind=kinds, d_ap=distances, d_an=distances)

    @staticmethod
    def concatenate(parts: Sequence["Triplets"]) -> "Triplets":
        names = Triplets.__dataclass_fields__
        return Triplets(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
