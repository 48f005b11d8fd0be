"""Anchors with their positives, and the intervals of similarities in which their negatives lie."""

from collections.abc import Callable

import numpy as np

from pipeline.triplets.draws import below, mix
from pipeline.triplets.kernels import compiled
from pipeline.triplets.rows import Block, Pairs
from pipeline.triplets.rule import KINDS, Rule


@compiled
def _draw_positives(key, rows, own, available, start, content, positives):
    out = np.full((len(rows), positives), -1, np.int64)
    for i in range(len(rows)):
        first, size = own[i, 0], own[i, 1] - own[i, 0]
        mine = rows[i] - first
        copies = len(content) > 0
        found = 0
        if available[i] <= positives:
            for k in range(size):
                if k != mine and not (copies and content[start[i] + k] == content[start[i] + mine]):
                    out[i, found] = first + k
                    found += 1
            continue
        tries = 0
        while found < positives:
            k = below(mix(mix(key, rows[i]), tries), size)
            tries += 1
            new = k != mine and not (copies and content[start[i] + k] == content[start[i] + mine])
            for other in range(found):
                new = new and out[i, other] != first + k
            if new:
                out[i, found] = first + k
                found += 1
    return out


def draw_positives(
    rule: Rule, rows: np.ndarray, own: np.ndarray, content_of: Callable[[int, int], np.ndarray] | None = None
) -> np.ndarray:
    """Draws positives without replacement; all of them where the class has no more than asked for.

    Args:
      rows: int64 [n], anchors. own: int64 [n, 2], the row range of each anchor's class.
      content_of: the content codes of the rows of a range, where the corpus has copies.
    Returns:
      int64 [n, rule.positives], rows, -1 where the class has fewer.
    """
    size = own[:, 1] - own[:, 0]
    if content_of is None:
        start, content, available = np.zeros_like(rows), np.empty(0, np.int64), size - 1
    else:
        classes, which = np.unique(own, axis=0, return_inverse=True)
        contents = [content_of(int(lo), int(hi)) for lo, hi in classes]
        offsets = np.concatenate([[0], np.cumsum([len(c) for c in contents])]).astype(np.int64)
        start, content = offsets[which.ravel()], np.concatenate(contents)
        copies = []
        for codes in contents:
            _, code, count = np.unique(codes, return_inverse=True, return_counts=True)
            copies.append(count[code])
        available = size - np.concatenate(copies)[start + rows - own[:, 0]]
    return _draw_positives(rule.key("positive"), rows, own, available, start, content, rule.positives)


@compiled
def _next_below(s):
    return np.float32(np.nextafter(np.float32(s), np.float32(-np.inf)))


@compiled
def largest_at_least(distance):
    """The largest similarity with 2 - 2 s >= distance, compared in float64 as the definitions are.

    Similarities of stored embeddings are multiples of 2^-22, so that is the unit of the search.
    """
    unit = 1.0 / 4194304.0
    k = np.floor((1.0 - 0.5 * distance) / unit)
    while 2.0 - 2.0 * (k * unit) < distance:
        k -= 1.0
    while 2.0 - 2.0 * ((k + 1.0) * unit) >= distance:
        k += 1.0
    s = np.float32(k * unit)
    return _next_below(s) if np.float64(s) > k * unit else s


@compiled
def interval(kind, similarity, margin, min_distance, min_ratio):
    """(lo, hi, hi without the distance guards): a row of another label qualifies if lo < s <= hi."""
    d_ap = 2.0 - 2.0 * np.float64(similarity)
    if kind == 0:  # d_ap < d_an < d_ap + margin
        lo, free = largest_at_least(d_ap + margin), _next_below(similarity)
    else:  # d_an <= d_ap
        lo, free = _next_below(similarity), np.float32(np.inf)
    hi = free
    if min_distance > 0:
        hi = min(hi, largest_at_least(min_distance))
    if min_ratio > 0:
        hi = min(hi, largest_at_least(min_ratio * d_ap))
    return lo, max(hi, lo), max(free, lo)


@compiled
def intervals(kind, positive, similarity, margin, min_distance, min_ratio):
    lo = np.full(positive.shape, np.inf, np.float32)  # no positive: nothing qualifies
    hi = np.full(positive.shape, -np.inf, np.float32)
    free = np.full(positive.shape, -np.inf, np.float32)
    for i in range(positive.shape[0]):
        for p in range(positive.shape[1]):
            if positive[i, p] >= 0:
                lo[i, p], hi[i, p], free[i, p] = interval(kind, similarity[i, p], margin, min_distance, min_ratio)
    return lo, hi, free


@compiled
def first_kinds(key, rows, positive, kinds, shares):
    out = np.empty(positive.shape, np.int8)
    total = shares.sum()
    for i in range(positive.shape[0]):
        for p in range(positive.shape[1]):
            out[i, p] = first_kind(mix(mix(key, rows[i]), positive[i, p]), kinds, shares, total)
    return out


@compiled
def first_kind(h, kinds, shares, total):
    left = np.float64(h >> np.uint64(11)) * (1.0 / 9007199254740992.0) * total
    for k in range(len(kinds) - 1):
        if left < shares[k]:
            return kinds[k]
        left -= shares[k]
    return kinds[len(kinds) - 1]


def make_pairs(
    rule: Rule, anchors: Block, own: np.ndarray, positive: np.ndarray, positive_embedding: np.ndarray
) -> Pairs:
    """Works out the slots of a block of anchors.

    Args:
      own: int64 [n, 2], class ranges. positive: int64 [n, P], -1 where missing.
      positive_embedding: float32 [n, P, dim], anything where missing.
    """
    similarity = np.einsum("nd,npd->np", anchors.embedding, positive_embedding, optimize=True)
    similarity = np.where(positive >= 0, similarity, np.float32(0)).astype(np.float32)
    guarded = rule.min_negative_distance > 0 or rule.min_negative_ratio > 0
    los: list[np.ndarray] = []
    his: list[np.ndarray] = []
    slot: dict[int, np.ndarray] = {}
    watch: dict[int, np.ndarray] = {}

    def add(lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        first = sum(column.shape[1] for column in los)
        los.append(lo)
        his.append(hi)
        return first + np.arange(lo.shape[1])

    for kind in rule.kinds:
        lo, hi, free = intervals(
            kind, positive, similarity, rule.margin, rule.min_negative_distance, rule.min_negative_ratio
        )
        if KINDS[kind] == "hard" and rule.pick == "nearest" and not rule.min_negative_ratio:
            # The nearest hard negative is the nearest row there is: one slot serves all P pairs, and
            # `choose` checks it against each pair's d_ap.
            limit = largest_at_least(rule.min_negative_distance) if rule.min_negative_distance else np.inf
            shared = add(np.full((len(lo), 1), -np.inf, np.float32), np.full((len(lo), 1), limit, np.float32))
            slot[kind] = np.repeat(shared, positive.shape[1])
        else:
            slot[kind] = add(lo, hi)
        if guarded:
            watch[kind] = add(np.maximum(lo, hi), free)
    return Pairs(
        anchors=anchors,
        own=own,
        positive=positive,
        similarity=similarity,
        first_kind=first_kinds(
            rule.key("kind"),
            anchors.row,
            positive,
            np.array(rule.kinds),
            np.array([s for _, s in rule.shares]),
        ),
        lo=np.concatenate(los, axis=1),
        hi=np.concatenate(his, axis=1),
        slot=slot,
        watch=watch,
    )
