"""Which corpus triplets share a pack, and which rows fill it up.

A triplet on its own costs three forward passes. A pack holds some rows once and many triplets over them: the
corpus triplets that brought the rows in, and one triplet for every other ordered pair of a label among them.
"""

import numpy as np

from pipeline.packs.packs import PackOptions, Packs
from pipeline.triplets.draws import below, hashes, mix
from pipeline.triplets.kernels import compiled
from pipeline.triplets.rows import Triplets
from pipeline.triplets.rule import Rule


def shard_of(rule: Rule, triplets: Triplets, shards: int) -> np.ndarray:
    """int64 [t]: the shard of each triplet. Shards are runs of the hash order of (anchor, positive)."""
    share = (hashes(rule.key("pack"), triplets.anchor, triplets.positive) >> np.uint64(11)) * 2.0**-53
    return (share * shards).astype(np.int64)


def hash_order(rule: Rule, triplets: Triplets) -> np.ndarray:
    """int64 [t]: the order in which triplets enter packs, each once: the scan may choose a negative that is given."""
    rows = np.stack([triplets.negative, triplets.positive, triplets.anchor])
    order = np.lexsort([*rows, hashes(rule.key("pack"), triplets.anchor, triplets.positive)])
    return order[np.diff(rows[:, order], axis=1, prepend=-1).any(axis=0)]


@compiled
def _assemble(anchor, positive, negative, own, other, pack_rows, fill, key):
    """Rows of all packs, where each pack's rows begin, and where each pack's triplets begin."""
    count = len(anchor)
    rows = np.empty(max(1, count) * (3 + 2 * fill), np.int64)
    row_starts, triplet_starts = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    packs, end = 0, 0
    class_first = np.empty(pack_rows, np.int64)  # the classes in the open pack: first row, size, rows so far
    class_size = np.empty(pack_rows, np.int64)
    class_rows = np.empty(pack_rows, np.int64)
    classes, missing = 0, 0  # missing: rows still to fill in
    t = 0
    while t <= count:
        start = row_starts[packs]
        fits = False
        if t < count:
            # What this triplet would add, worked out on copies of the few counts it touches.
            new, new_missing, trial_classes = 0, missing, classes
            for part in range(3):
                row = anchor[t] if part == 0 else (positive[t] if part == 1 else negative[t])
                there = False
                for k in range(start, end + new):
                    there = there or rows[k] == row
                if there:
                    continue
                lo, hi = (other[t, 0], other[t, 1]) if part == 2 else (own[t, 0], own[t, 1])
                c = 0
                while c < trial_classes and class_first[c] != lo:
                    c += 1
                if end + new - start >= pack_rows or c >= pack_rows:
                    new_missing = pack_rows + 1  # no room for the row itself
                    break
                if c == trial_classes:
                    class_first[c], class_size[c], class_rows[c] = lo, hi - lo, 0
                    trial_classes += 1
                    new_missing += min(fill, hi - lo)
                if class_rows[c] < fill:
                    new_missing -= 1
                class_rows[c] += 1
                rows[end + new] = row
                new += 1
            fits = end + new - start + new_missing <= pack_rows
            if fits or end == start:
                end += new
                classes, missing = trial_classes, new_missing
                t += 1
                if t < count:
                    continue
            else:  # take back what was tried
                for k in range(end, min(end + new, len(rows))):
                    c = 0
                    while not class_first[c] <= rows[k] < class_first[c] + class_size[c]:
                        c += 1
                    class_rows[c] -= 1
        if end == start:
            break
        for c in range(classes):
            want, tries = min(fill, class_size[c]), 0
            while class_rows[c] < want:
                h = mix(mix(mix(key, packs), class_first[c]), tries)
                row = class_first[c] + below(h, class_size[c])
                tries += 1
                there = False
                for k in range(start, end):
                    there = there or rows[k] == row
                if not there:
                    rows[end] = row
                    end += 1
                    class_rows[c] += 1
        packs += 1
        row_starts[packs], triplet_starts[packs] = end, t
        classes, missing = 0, 0
        if t == count:
            break
    return rows[:end], row_starts[: packs + 1], triplet_starts[: packs + 1]


def assemble(
    rule: Rule, options: PackOptions, shard: int, triplets: Triplets, own: np.ndarray, other: np.ndarray
) -> Packs:
    """Puts a shard's triplets into packs: each enters while its new rows and their fill fit.

    Args:
      own, other: int64 [t, 2], the row ranges of the anchor's and of the negative's class.
    """
    if options.lone:
        rows = np.stack([triplets.anchor, triplets.positive, triplets.negative], axis=1).ravel()
        triplet_starts = np.arange(len(triplets) + 1, dtype=np.int64)
        starts = options.pack_rows * triplet_starts
    else:
        sides, key = (triplets.anchor, triplets.positive, triplets.negative), rule.key(f"fill/{shard}")
        rows, starts, triplet_starts = _assemble(*sides, own, other, options.pack_rows, options.fill, key)
    return Packs(shard=shard, rows=rows, starts=starts, triplets=triplets, triplet_starts=triplet_starts)
