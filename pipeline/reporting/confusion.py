"""Which classes are confused."""

from dataclasses import dataclass

import numpy as np

from pipeline.reporting.sample import Pairs, first_of_each


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Two classes, a < b. triplets: how many have an anchor of one and a negative of the other; share: of all whose
    anchor is of either. examples: those with the smallest d_an, no row twice."""

    a: int
    b: int
    triplets: int
    share: float
    examples: list[int]


def _confused_pairs(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64: of each pair of classes, the ones with most triplets first, the lower class, the higher, and triplets."""
    a, b, counts = count_pairs(*np.sort(pairs.classes, axis=1).T)
    order = np.argsort(-counts, kind="stable")
    return a[order], b[order], counts[order]


def count_pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64: the different pairs, ascending, and how often each is there. One number a pair: rows as keys are slow."""
    base = int(b.max(initial=0)) + 1
    values, counts = np.unique(a * base + b, return_counts=True)
    return values // base, values % base, counts


def confusions(pairs: Pairs, count: int, examples: int) -> list[Confusion]:
    """The pairs of classes with the most triplets between them."""
    anchors = np.bincount(pairs.classes[:, 0], minlength=pairs.classes.max() + 1)
    both = np.sort(pairs.classes, axis=1)
    found = []
    for a, b, triplets in zip(*(column[:count].tolist() for column in _confused_pairs(pairs)), strict=True):
        where = np.flatnonzero((both == (a, b)).all(axis=1))
        where = where[np.lexsort((pairs.negative[where], pairs.anchor[where], pairs.d_an[where]))]
        chosen: list[int] = []
        seen: set[int] = set()
        for triplet in where.tolist():
            rows = {int(pairs.anchor[triplet]), int(pairs.negative[triplet])}
            if not rows & seen:
                chosen.append(triplet)
                seen |= rows
            if len(chosen) == examples:
                break
        share = triplets / int(anchors[a] + anchors[b])
        found.append(Confusion(a=a, b=b, triplets=triplets, share=share, examples=chosen))
    return found


def confusion_matrix(pairs: Pairs, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the classes in the most confused pairs, who is taken for whom.

    Returns:
      int64 [c], at most `most` classes, alike ones beside each other; int64 [c, c], triplets by class of the anchor
      (row) and of the negative (column).
    """
    a, b, _ = _confused_pairs(pairs)
    both = np.stack([a, b], axis=1).ravel()
    classes = np.sort(both[first_of_each(both)][:most])
    inside = pairs.classes[np.isin(pairs.classes, classes).all(axis=1)]
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, tuple(np.searchsorted(classes, inside).T), 1)
    if len(classes) > 2:
        from scipy.cluster.hierarchy import leaves_list, linkage
        from scipy.spatial.distance import squareform

        apart = 1.0 / (1 + matrix + matrix.T)
        np.fill_diagonal(apart, 0)
        order = leaves_list(linkage(squareform(apart), "average", optimal_ordering=True))
        classes, matrix = classes[order], matrix[np.ix_(order, order)]
    return classes, matrix
