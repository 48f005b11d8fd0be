"""The definitions once more, as loops over every row: what tests compare mining with."""

import numpy as np

from pipeline.triplets.rule import KINDS, Rule


def distance(embeddings: np.ndarray) -> np.ndarray:
    """float64 [n, n]: 2 - 2 a.b, exact for embeddings on the grid."""
    exact = embeddings.astype(np.float64)
    return 2 - 2 * exact @ exact.T


def positives(a: int, label: np.ndarray, content: np.ndarray | None = None) -> list[int]:
    return [
        p
        for p in range(len(label))
        if p != a and label[p] == label[a] and (content is None or content[p] != content[a])
    ]


def negatives(
    kind: str, rule: Rule, d: np.ndarray, a: int, p: int, label: np.ndarray,
    content: np.ndarray | None = None, group: np.ndarray | None = None,
) -> list[int]:  # fmt: skip
    """Every row that qualifies as that kind of negative of (a, p), guards applied."""
    found = []
    for n in range(len(label)):
        if label[n] == label[a]:
            continue
        if content is not None and content[n] == content[a]:
            continue
        if group is not None and group[a] >= 0 and group[n] == group[a]:
            continue
        if rule.min_negative_distance > 0 and d[a, n] < rule.min_negative_distance:
            continue
        if rule.min_negative_ratio > 0 and d[a, n] < rule.min_negative_ratio * d[a, p]:
            continue
        if kind == "semi-hard" and d[a, p] < d[a, n] < d[a, p] + rule.margin:
            found.append(n)
        if kind == "hard" and d[a, n] <= d[a, p]:
            found.append(n)
    return found


def check(
    rule: Rule, d: np.ndarray, label: np.ndarray, triplet: tuple[int, int, int, int],
    content: np.ndarray | None = None, group: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Asserts that one selected triplet (a, p, n, kind) obeys the rule."""
    a, p, n, kind = triplet
    assert p in positives(a, label, content)
    allowed = negatives(KINDS[kind], rule, d, a, p, label, content, group)
    assert n in allowed
    if rule.pick == "nearest":
        assert n == min(allowed, key=lambda row: (d[a, row], row))
