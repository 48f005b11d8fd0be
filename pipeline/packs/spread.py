"""Packs that are spread out: every row beside classmates far from it, among classes far from each other.

A row is in one pack, or in two if it completes a group.

1. Within a class, the two rows that lie farthest apart become a group, and so on with those that are left: hard
   positives, which Hermans et al. (https://arxiv.org/abs/1703.07737) take from a batch and this takes from the class.
2. Classes are put in an order in which near ones are neighbours: halved, as in a k-d tree, at the median of the
   coordinate in which their means lie farthest apart, and the halves again.
3. The groups in this order are cut into as many segments as a pack has places, and each pack gets one of each.

The packs are the same on every machine: on the grid of pipeline.triplets similarities are exact, and so are the sums
that means are made of.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.triplets.draws import hashes, row_hashes
from pipeline.triplets.kernels import compiled, one_blas_thread
from pipeline.triplets.rows import Block
from pipeline.triplets.rule import Rule

CHUNK = 1 << 16  # classes
MATCHED = 32  # rows of a class at the least, drawn by hash, among which the farthest are looked for


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of rows of one class each.

    row: int64 [n], one group after the other; starts: int64 [groups + 1], where each begins; label: int64 [groups].
    """

    row: np.ndarray
    starts: np.ndarray
    label: np.ndarray

    @staticmethod
    def concatenate(parts: "list[Groups]") -> "Groups":
        sizes = np.concatenate([np.diff(part.starts) for part in parts])
        return Groups(
            row=np.concatenate([part.row for part in parts]),
            starts=np.concatenate([[0], np.cumsum(sizes)]),
            label=np.concatenate([part.label for part in parts]),
        )

    def take(self, which: np.ndarray) -> "Groups":
        sizes = np.diff(self.starts)[which]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        place = np.arange(starts[-1]) + np.repeat(self.starts[which] - starts[:-1], sizes)
        return Groups(row=self.row[place], starts=starts, label=self.label[which])


@compiled
def _far_apart(embedding, starts, fill):
    """For each run of rows, groups of `fill` of them, or of all there are: positions, and where each group begins."""
    room = 0
    for run in range(len(starts) - 1):
        n = starts[run + 1] - starts[run]
        room += n + fill
    out, ends, made, groups = np.empty(room, np.int64), np.zeros(room + 1, np.int64), 0, 0
    for run in range(len(starts) - 1):
        first, n = starts[run], starts[run + 1] - starts[run]
        size = min(fill, n)
        part = embedding[first : first + n]
        scores = np.dot(part, part.T)
        free, left = np.ones(n, np.bool_), n
        while left > 0:
            a, b, low = -1, -1, np.inf
            for i in range(n):
                if free[i] and a < 0:
                    a = i
                for j in range(i + 1, n):
                    if free[i] and free[j] and scores[i, j] < low:
                        a, b, low = i, j, scores[i, j]
            members = out[made : made + size]
            members[0], count = a, 1
            free[a], left = False, left - 1
            if b >= 0:
                members[1], count = b, 2
                free[b], left = False, left - 1
            while count < size:  # the row whose nearest in the group is farthest; if none is free, one used before
                chosen, low = -1, np.inf
                for i in range(n):
                    if not free[i] and left > 0:
                        continue
                    near = -np.inf
                    for k in range(count):
                        near = np.inf if members[k] == i else max(near, scores[i, members[k]])
                    if near < low:
                        chosen, low = i, near
                if free[chosen]:
                    free[chosen], left = False, left - 1
                members[count], count = chosen, count + 1
            for k in range(size):
                members[k] += first
            made, groups = made + size, groups + 1
            ends[groups] = made
    return out[:made], ends[: groups + 1]


def group_rows(rule: Rule, block: Block, label: np.ndarray, fill: int) -> Groups:
    """Groups of `fill` rows that lie far apart in their class; a class of fewer rows is one group.

    A row is in one group, but for those that complete the last group of a class (of MATCHED rows or more: of a part
    of it). A class of one row, or of copies of one, is left out: it has no positives.

    Args:
      block: all rows of some classes, ascending. label: int64 [n], of each row, ascending.
    """
    order = np.lexsort((row_hashes(rule.key("group"), block.row), label))
    classes, first, size = np.unique(label, return_index=True, return_counts=True)
    usable = size > 1
    if block.content is not None:
        usable &= np.minimum.reduceat(block.content, first) < np.maximum.reduceat(block.content, first)
    order = order[np.repeat(usable, size)]
    size = size[usable]
    parts = np.maximum(1, size // max(MATCHED, fill))  # of each class, of nearly equal sizes
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    whole, of = np.repeat(size, parts), np.repeat(parts, parts)
    starts = np.concatenate([[0], np.cumsum((number + 1) * whole // of - number * whole // of)])
    with one_blas_thread():
        place, ends = _far_apart(np.ascontiguousarray(block.embedding[order]), starts, fill)
    row = order[place]
    return Groups(row=block.row[row], starts=ends, label=label[row[ends[:-1]]])


def draw_part(rule: Rule, first_rows: np.ndarray, most: int, fill: int) -> np.ndarray:
    """int64, ascending: about `most` rows, in whole classes, or of large ones in the pieces that `group_rows` looks at
    together. Two classes at least, if there are two; none of a single row.

    Rounds take one part after the other, so that no row comes again before all have come.

    Args:
      first_rows: int64 [classes + 1], where each class begins.
    """
    size, always = np.diff(first_rows), replace(rule, round=0)
    pieces = np.where(size > 1, np.maximum(1, size // max(MATCHED, fill)), 0)
    of = np.repeat(np.arange(len(size)), pieces)  # each piece's class
    number = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    ends = [-(-n * size[of] // pieces[of]) for n in (number, number + 1)]  # in its class, rounded up
    sizes = ends[1] - ends[0]
    order = np.argsort(row_hashes(always.key("turn"), np.arange(len(of))), kind="stable")
    begin = np.cumsum(sizes[order]) - sizes[order]
    after = (begin - rule.round * most) % max(1, sizes.sum())  # the end of the part before
    order = order[np.argsort(after, kind="stable")]
    others = np.flatnonzero(of[order] != of[order[:1]])
    count = max(np.count_nonzero(after < most), others[0] + 1 if len(others) else 1)
    chosen = np.zeros(len(of), bool)
    chosen[order[:count]] = True
    classes = np.unique(of[chosen])  # no rows are numbered but theirs: the corpus may be large
    label = np.repeat(np.arange(len(classes)), size[classes])
    rows = np.arange(len(label)) + (first_rows[classes] - np.cumsum(size[classes]) + size[classes])[label]
    drawn = rows[np.lexsort((row_hashes(always.key("piece"), rows), label))]
    which = np.isin(of, classes)
    return np.sort(drawn[np.repeat(chosen[which], sizes[which])])


def class_means(embedding: np.ndarray, label: np.ndarray) -> np.ndarray:
    """float64 [classes, dim]: the mean of each class' rows. label: int64 [n], ascending."""
    first = np.flatnonzero(np.diff(label, prepend=-1))
    sums = np.stack([np.add.reduceat(column, first, dtype=np.float64) for column in embedding.T], axis=1)
    return sums / np.diff(first, append=len(label))[:, None]


def order_classes(means: np.ndarray, parts: int) -> np.ndarray:
    """int64 [classes]: each class's place in an order that is halved until it has `parts` parts or more.

    means: float64 [classes, dim], may be mapped: of at most CHUNK classes all numbers are held at once.
    """
    cut = [np.arange(len(means))]
    while len(cut) < parts and min(map(len, cut)) > 1:
        halves = []
        for part in cut:
            widest = np.argmax(_extent(means, part))
            part = part[np.argsort(means[part, widest], kind="stable")]
            halves += [part[: len(part) // 2], part[len(part) // 2 :]]
        cut = halves
    place = np.empty(len(means), np.int64)
    place[np.concatenate(cut)] = np.arange(len(means))
    return place


def _extent(means: np.ndarray, part: np.ndarray) -> np.ndarray:
    """float64 [dim]: how far apart the means of some classes, int64 [n], lie in each coordinate."""
    least, most = np.full((2, means.shape[1]), [[np.inf], [-np.inf]])
    for first in range(0, len(part), CHUNK):
        some = means[part[first : first + CHUNK]]
        least, most = np.minimum(least, some.min(axis=0)), np.maximum(most, some.max(axis=0))
    return most - least


def deal(rule: Rule, groups: Groups, place: np.ndarray, pack_rows: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Deals groups to packs, each of which gets at most one of each segment of the groups.

    A row that comes twice in a pack is there once. Packs of one class are left out.

    Args:
      place: int64 [groups], of each group's class in the order of `order_classes`.
    Returns:
      int64 rows of all packs, one pack after the other, and int64 [packs + 1], where each begins.
    """
    slots, count = pack_rows // fill, len(groups.label)
    packs = -(-count // slots)
    first = groups.row[groups.starts[:-1]]
    order = np.lexsort((row_hashes(rule.key("group"), first), place))
    pack = np.empty(count, np.int64)
    for slot in range(slots):
        segment = order[slot * count // slots : (slot + 1) * count // slots]
        drawn = np.argsort(hashes(rule.key("spread"), np.full(packs, slot), np.arange(packs)), kind="stable")
        pack[segment] = drawn[: len(segment)]
    classes = np.unique(pack * (groups.label.max(initial=0) + 1) + groups.label, return_index=True)[1]
    mixed = np.bincount(pack[classes], minlength=packs) > 1
    which = np.argsort(pack, kind="stable")
    which = which[mixed[pack[which]]]
    dealt, number = groups.take(which), np.repeat(pack[which], np.diff(groups.starts)[which])
    once = np.sort(np.unique(number * (groups.row.max(initial=0) + 1) + dealt.row, return_index=True)[1])
    sizes = np.bincount(number[once], minlength=packs)
    return dealt.row[once], np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
