"""Are two rows of one class? ROC AUC, equal error rate, VAL at a false accept rate, 10-fold accuracy.

All pairs are counted, none is sampled: similarities of embeddings on the grid are multiples of 2^-22 (see
`pipeline.triplets`), so that a histogram with a bin for each, in memory that does not grow with the rows, holds the
whole ROC curve.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.triplets.draws import row_hashes
from pipeline.triplets.kernels import TILE, compiled, one_blas_thread
from pipeline.triplets.rows import GRID

FOLDS = 10  # as in Labeled Faces in the Wild
FAR = 1e-3  # FaceNet, section 5
UNIT = int(GRID) ** 2  # bins per 1 of similarity
REACH = UNIT + UNIT // 64  # rounding to the grid leaves lengths, and so similarities, a little above 1
DRAW_FOLDS = np.uint64(0x666F6C6473)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Pairs by similarity, the most similar first.

    place: int64 [k], ascending, how far below the highest similarity, in units of 2^-22; same, different: int64 [k],
    pairs of one class and of two that have it.
    """

    place: np.ndarray
    same: np.ndarray
    different: np.ndarray

    @property
    def usable(self) -> bool:
        return bool(self.same.any() and self.different.any())

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [k] each: VAL and FAR (FaceNet, section 4) when pairs down to a place count as one class."""
        val, far = np.cumsum(self.same), np.cumsum(self.different)
        return val / max(int(self.same.sum()), 1), far / max(int(self.different.sum()), 1)


def joined(curves: list[Curve]) -> Curve:
    """The pairs of several curves."""
    place, which = np.unique(np.concatenate([one.place for one in curves]), return_inverse=True)
    same, different = (
        np.bincount(which, np.concatenate([getattr(one, name) for one in curves])).astype(np.int64)
        for name in ("same", "different")
    )
    return Curve(place=place, same=same, different=different)


@compiled
def _count(scores, label, first_row, first_column, reach, unit, same, different):
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            if first_column + j > first_row + i:
                bin = reach - np.int64(np.rint(np.float64(scores[i, j]) * unit))
                bin = min(max(bin, 0), 2 * reach)
                if label[first_row + i] == label[first_column + j]:
                    same[bin] += 1
                else:
                    different[bin] += 1


def curve(embeddings: np.ndarray, label: np.ndarray) -> Curve:
    """Counts every pair of different rows once.

    Args:
      embeddings: float32 [n, dim], L2-normalised, on the grid. label: int64 [n].
    """
    same, different = np.zeros(2 * REACH + 1, np.int64), np.zeros(2 * REACH + 1, np.int64)
    height, width = TILE
    with one_blas_thread():
        for row in range(0, len(label), height):
            for column in range(row, len(label), width):
                scores = embeddings[row : row + height] @ embeddings[column : column + width].T
                _count(scores, label, row, column, REACH, UNIT, same, different)
    place = np.flatnonzero(same + different)
    return Curve(place=place, same=same[place], different=different[place])


def roc_auc(found: Curve) -> float:
    """The chance that a pair of one class is more similar than a pair of two; ties count half."""
    above = np.cumsum(found.same) - found.same
    pairs = int(found.same.sum()) * int(found.different.sum())
    return float((found.different * (above + found.same / 2)).sum() / pairs)


def equal_error_rate(found: Curve) -> float:
    """The error rate at the threshold where false accepts and false rejects are as frequent.

    Between two thresholds the ROC curve is taken to be straight.
    """
    val, far = (np.concatenate([[0.0], rate]) for rate in found.rates())
    gap = far - (1 - val)
    k = int(np.argmax(gap >= 0))
    step = -gap[k - 1] / (gap[k] - gap[k - 1])
    return float(far[k - 1] + step * (far[k] - far[k - 1]))


def val_at_far(found: Curve, far: float = FAR) -> float:
    """VAL, the share of pairs of one class accepted, at the lowest threshold whose false accept rate is at most `far`.

    FaceNet, section 4 (https://arxiv.org/abs/1503.03832).
    """
    val, rate = found.rates()
    allowed = int(np.searchsorted(rate, far, "right"))
    return float(val[allowed - 1]) if allowed else 0.0


def _balanced(found: Curve) -> np.ndarray:
    """float64 [k]: accuracy at each threshold, both sorts of pairs with the same weight, as in LFW's lists."""
    val, far = found.rates()
    accuracy: np.ndarray = (val + 1 - far) / 2
    return accuracy


def deal_folds(label: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    """int64 [n]: a fold for each row. Folds share no class, as in LFW; with too few classes for that, no row."""
    classes, code = np.unique(label, return_inverse=True)
    if len(classes) < 2 * folds:
        return deal_rows(label, folds)
    rank = np.argsort(np.argsort(row_hashes(DRAW_FOLDS, np.arange(len(classes))), kind="stable"))
    dealt: np.ndarray = rank[code] % folds
    return dealt


def deal_rows(label: np.ndarray, folds: int) -> np.ndarray:
    """int64 [n]: a fold for each row, every class spread evenly over them."""
    order = np.lexsort((row_hashes(DRAW_FOLDS, np.arange(len(label))), label))
    fold = np.empty(len(label), np.int64)
    fold[order] = np.arange(len(label)) % folds
    return fold


def verification(embeddings: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Everything above, over all pairs; and over pairs within ten folds for what has a spread.

    Args:
      embeddings: float32 [n, dim], L2-normalised, on the grid. label: int64 [n].
    Returns:
      roc_auc, equal_error_rate, val_at_far_1e-3 over all pairs; val_at_far_1e-3_std over the folds;
      accuracy_10_fold and its standard deviation: FaceNet, section 5.6, the threshold of each fold chosen on the
      other nine. None where there are no pairs for it.
    """
    whole = curve(embeddings, label)
    name = "val_at_far_1e-3"
    names = ("roc_auc", "equal_error_rate", name, f"{name}_std", "accuracy_10_fold", "accuracy_10_fold_std")
    found: dict[str, Any] = dict.fromkeys(names)
    if not whole.usable:
        return found
    found |= {"roc_auc": roc_auc(whole), "equal_error_rate": equal_error_rate(whole), name: val_at_far(whole)}
    fold = deal_folds(label)
    curves = [curve(embeddings[fold == k], label[fold == k]) for k in range(FOLDS)]
    vals, accuracies = [], []
    for k, one in enumerate(curves):
        rest = joined([other for n, other in enumerate(curves) if n != k])
        if one.usable and rest.usable:
            vals.append(val_at_far(one))
            threshold = rest.place[np.argmax(_balanced(rest))]
            accepted = np.searchsorted(one.place, threshold, "right")
            accuracies.append(float(np.concatenate([[0.5], _balanced(one)])[accepted]))
    if vals:
        found |= {
            f"{name}_std": float(np.std(vals)),
            "accuracy_10_fold": float(np.mean(accuracies)),
            "accuracy_10_fold_std": float(np.std(accuracies)),
        }
    return found
