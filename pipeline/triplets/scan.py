"""All anchors against all rows: each slot gets its nearest row, or one drawn uniformly from all that qualify.

Ties go to the lower row. `choose` turns slots into triplets, and counts the pairs that are skipped, by
reason. Inside packs `within` does.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from pipeline.triplets.columns import ANCHOR_BLOCK, visiting_order
from pipeline.triplets.draws import below, mix
from pipeline.triplets.kernels import TILE, compiled, one_blas_thread, product
from pipeline.triplets.pairs import intervals
from pipeline.triplets.rows import NONE, Block, Found, Pairs, Triplets
from pipeline.triplets.rule import KINDS, Rule

TASK = 2048  # anchors that a thread takes at a time


@compiled
def _leave_out(scores, own, skip_i, skip_j, offset, lo, free, guarded):
    """Sets scores to -inf in the own class [own[i, 0], own[i, 1]) and at the (skip_i, skip_j), noting the latter."""
    width = scores.shape[1]
    for i in range(scores.shape[0]):
        scores[i, max(own[i, 0] - offset, 0) : max(min(own[i, 1] - offset, width), 0)] = -np.inf
    for k in range(len(skip_i)):
        i, j = skip_i[k], skip_j[k] - offset
        if 0 <= j < width:
            for p in range(lo.shape[1]):
                if lo[i, p] < scores[i, j] <= free[i, p]:
                    guarded[i, p] = True
            scores[i, j] = -np.inf


def _ordered(similarity: np.ndarray) -> np.ndarray:
    """int32 that order as the float32 do: the compiler makes vector code of an integer maximum, not of a float one."""
    bits = similarity.view(np.int32)
    return np.where(bits < 0, np.int32(-(2**31)) - bits, bits)


def _from_ordered(key: np.ndarray) -> np.ndarray:
    """The inverse of `_ordered`, but for the sign of zero."""
    return np.where(key < 0, np.int32(-(2**31)) - key, key).view(np.float32)


@compiled
def _keep_nearest(bits, rows, lo, hi, best, best_row):
    """For each slot the largest score in (lo, hi], ties to the lower row.

    bits: the scores' float32 seen as int32. lo, hi, best: `_ordered`.
    """
    nothing = np.int32(-2147483648)
    line = np.empty(bits.shape[1], np.int32)
    for i in range(bits.shape[0]):
        source = bits[i]
        for j in range(len(line)):
            line[j] = np.int32(nothing - source[j]) if source[j] < 0 else source[j]
        for q in range(hi.shape[1]):
            limit, top = hi[i, q], nothing
            for j in range(len(line)):  # values first, a column only when a slot improves
                top = max(top, line[j] if line[j] <= limit else nothing)
            if top > lo[i, q] and top >= best[i, q]:
                j = 0
                while line[j] != top:
                    j += 1
                if top > best[i, q] or rows[j] < best_row[i, q]:
                    best[i, q], best_row[i, q] = top, rows[j]


@compiled
def _scan_nearest(anchors, columns, rows, tile, own, skip, guard, slots):
    """All tiles of some anchors against a column block, without the GIL: between tiles, threads do not meet."""
    skip_i, skip_j = skip
    lo, free, guarded = guard
    slot_lo, slot_hi, best, best_row = slots
    scratch = np.empty(tile[0] * tile[1], np.float32)
    for start in range(0, len(anchors), tile[0]):
        end = min(start + tile[0], len(anchors))
        first, last = np.searchsorted(skip_i, start), np.searchsorted(skip_i, end)
        for offset in range(0, len(columns), tile[1]):
            width = min(tile[1], len(columns) - offset)
            scores = scratch[: (end - start) * width].reshape(end - start, width)
            np.dot(anchors[start:end], columns[offset : offset + width].T, scores)
            _leave_out(
                scores, own[start:end], skip_i[first:last] - start, skip_j[first:last], offset,
                lo[start:end], free[start:end], guarded[start:end],
            )  # fmt: skip
            _keep_nearest(
                scores.view(np.int32), rows[offset : offset + width],
                slot_lo[start:end], slot_hi[start:end], best[start:end], best_row[start:end],
            )  # fmt: skip


@compiled
def count_between(scores, lo, hi):
    count = np.int32(0)  # as wide as a score, so that both take the same lanes
    for j in range(len(scores)):
        count += np.int32((scores[j] > lo) & (scores[j] <= hi))
    return np.int64(count)


@compiled
def pick_between(scores, lo, hi, which):
    """The position of the which-th score in (lo, hi]; there must be one."""
    start, width = 0, 32
    while True:
        count = count_between(scores[start : start + width], lo, hi)  # vectorised, so whole steps are cheap
        if which < count:
            break
        which -= count
        start += width
    j = start
    while True:
        which -= lo < scores[j] <= hi
        if which < 0:
            return j
        j += 1


@compiled
def nearest_between(scores, rows, lo, hi):
    """The position of the largest score in (lo, hi], ties to the lower row; there must be one."""
    best = -1
    for j in range(len(scores)):
        if lo < scores[j] <= hi and (
            best < 0 or scores[j] > scores[best] or (scores[j] == scores[best] and rows[j] < rows[best])
        ):
            best = j
    return best


@compiled
def _keep_random(scores, rows, lo, hi, key, anchor, positive_of_slot, block, active, best, best_row):
    """Fills the empty slots of the active anchors with one of the rows in (lo, hi], each as likely as another."""
    for line in range(scores.shape[0]):
        i = active[line]
        for q in range(hi.shape[1]):
            if best_row[i, q] != NONE:
                continue
            count = count_between(scores[line], lo[i, q], hi[i, q])
            if count == 0:
                continue
            h = mix(mix(mix(mix(key, anchor[i]), positive_of_slot[i, q]), block), q)
            j = pick_between(scores[line], lo[i, q], hi[i, q], below(h, count))
            best[i, q], best_row[i, q] = scores[line, j], rows[j]


def _same(codes: np.ndarray | None, column_codes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """All (i, j) with codes[i] == column_codes[j], -1 aside, as two int64 arrays."""
    nobody = np.empty(0, np.int64)
    if codes is None or column_codes is None:
        return nobody, nobody
    order = np.argsort(column_codes, kind="stable")
    ordered = column_codes[order]
    first, last = np.searchsorted(ordered, codes, "left"), np.searchsorted(ordered, codes, "right")
    count = np.where(codes == -1, 0, last - first)
    i = np.repeat(np.arange(len(codes)), count)
    within = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
    return i, order[first[i] + within]


def _forbidden(anchors: Block, columns: Block) -> tuple[np.ndarray, np.ndarray]:
    """The (i, j) that guards by identity leave out, i ascending: the anchor's group and copies of its payload."""
    by_content, by_group = _same(anchors.content, columns.content), _same(anchors.group, columns.group)
    i, j = np.concatenate([by_content[0], by_group[0]]), np.concatenate([by_content[1], by_group[1]])
    order = np.argsort(i, kind="stable")
    return i[order], j[order]


def qualifying_bounds(rule: Rule, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Per pair the (lo, hi] that its kinds span together without guards: what an identity guard can act on."""
    bounds = [intervals(kind, pairs.positive, pairs.similarity, rule.margin, 0.0, 0.0) for kind in rule.kinds]
    return np.minimum.reduce([b[0] for b in bounds]), np.maximum.reduce([b[2] for b in bounds])


def slots_to_fill(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n, Q], the positive that each slot is of, and [n, P], the slot that each pair waits for."""
    positive_of_slot = np.zeros(pairs.lo.shape, np.int64)
    for slots in (*pairs.slot.values(), *pairs.watch.values()):
        positive_of_slot[:, slots] = pairs.positive
    first = np.zeros(pairs.positive.shape, np.int64)
    for kind, slots in pairs.slot.items():
        first = np.where(pairs.first_kind == kind, slots, first)
    return positive_of_slot, first


def scan_nearest(
    rule: Rule,
    pairs: Pairs,
    columns: Iterable[Block],
    threads: int,
    tile: tuple[int, int] = TILE,
    task: int = TASK,
) -> Found:
    """Fills each slot with its nearest row among the columns; the parts of a split list merge with `merge`.

    Threads go over blocks of anchors, each with a single-threaded BLAS: two BLAS threads and a parallel loop
    that take turns were two to four times slower.

    Args:
      tile: anchors x columns of one matrix product. task: anchors that a thread takes at a time, or an equal share if
        they are fewer. Both are only speed.
    """
    found = Found.nothing(pairs)
    bounds = qualifying_bounds(rule, pairs)
    lo, hi, best = _ordered(pairs.lo), _ordered(pairs.hi), _ordered(found.similarity)
    embedding = np.ascontiguousarray(pairs.anchors.embedding)
    task = max(1, min(task, -(-len(embedding) // threads)))
    starts = range(0, len(embedding), task)

    def scan(start: int, block: Block) -> None:
        cut = slice(start, start + task)
        anchors = pairs.anchors.take(cut)
        own, skip = np.searchsorted(block.row, pairs.own[cut]), _forbidden(anchors, block)
        guard = bounds[0][cut], bounds[1][cut], found.guarded[cut]
        slots = lo[cut], hi[cut], best[cut], found.row[cut]
        _scan_nearest(embedding[cut], block.embedding, block.row, tile, own, skip, guard, slots)

    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        for block in columns:
            list(pool.map(scan, starts, [block] * len(starts)))
    return replace(found, similarity=_from_ordered(best))


def scan_random(
    rule: Rule,
    pairs: Pairs,
    first_anchor_block: int,
    column: Callable[[int], Block],
    blocks: int,
    threads: int,
) -> Found:
    """Fills each slot with a row drawn uniformly from ALL rows of the corpus that qualify.

    Rows are dealt to column blocks by hash, so every set of them is equally likely to lie in a block: the
    first block visited that holds a qualifying row, and within it a uniform draw, is a uniform draw from all.
    Anchors whose pairs are served leave the matrix product.

    Args:
      pairs: whole anchor blocks, the first with number `first_anchor_block`.
      column: column block by number, out of `blocks`. It is called from several threads.
    """
    found = Found.nothing(pairs)
    bounds = qualifying_bounds(rule, pairs)
    key = rule.key("negative")
    positive_of_slot, first = slots_to_fill(pairs)

    def scan(start: int) -> None:
        cut = slice(start, start + ANCHOR_BLOCK)
        anchors, row = pairs.anchors.take(cut), found.row[cut]
        for number in visiting_order(rule, first_anchor_block + start // ANCHOR_BLOCK, blocks):
            waiting = (pairs.positive[cut] >= 0) & (np.take_along_axis(row, first[cut], axis=1) == NONE)
            active = np.flatnonzero(waiting.any(axis=1))
            if not len(active):
                break
            block = column(int(number))
            own = np.searchsorted(block.row, pairs.own[cut][active])
            part = anchors.take(active)
            scores = product(part.embedding, block.embedding)
            guarded = found.guarded[cut][active]
            skip = _forbidden(part, block)
            _leave_out(scores, own, *skip, 0, bounds[0][cut][active], bounds[1][cut][active], guarded)
            found.guarded[cut][active] = guarded
            _keep_random(
                scores, block.row, pairs.lo[cut], pairs.hi[cut], key, anchors.row, positive_of_slot[cut],
                number, active, found.similarity[cut], row,
            )  # fmt: skip

    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(scan, range(0, len(pairs.anchors.row), ANCHOR_BLOCK)))
    return found


def merge(one: Found, other: Found) -> Found:
    """The better of two partial results for the same pairs: the larger similarity, ties to the lower row."""
    better = (other.similarity > one.similarity) | ((other.similarity == one.similarity) & (other.row < one.row))
    return Found(
        similarity=np.where(better, other.similarity, one.similarity),
        row=np.where(better, other.row, one.row),
        guarded=one.guarded | other.guarded,
    )


def choose(rule: Rule, pairs: Pairs, found: Found) -> tuple[Triplets, dict[str, int]]:
    """Turns filled slots into triplets: the pair's first kind, else the others in the order listed.

    Returns the triplets in (anchor, place of the positive) order, and counts: `pairs`, `fallback` (took another
    kind than its first), `guarded`, `anchors_without_positive`, and `no_<kinds>_negative` for the pairs skipped.
    """
    kind = np.full(pairs.positive.shape, -1, np.int8)
    negative = np.full(pairs.positive.shape, -1, np.int64)
    similarity = np.zeros(pairs.positive.shape, np.float32)
    valid = {}
    for code, slots in pairs.slot.items():
        s = found.similarity[:, slots]
        valid[code] = (pairs.positive >= 0) & (found.row[:, slots] != NONE)
        if KINDS[code] == "hard":
            valid[code] &= s >= pairs.similarity  # the shared slot holds the nearest row, hard or not
    for first in (True, False):
        for code, slots in pairs.slot.items():
            take = valid[code] & (kind < 0) & ((pairs.first_kind == code) | (not first))
            kind[take] = code
            negative[take] = found.row[:, slots][take]
            similarity[take] = found.similarity[:, slots][take]
    guarded = found.guarded.copy()
    for slots in pairs.watch.values():
        guarded |= found.row[:, slots] != NONE

    there, done = pairs.positive >= 0, kind >= 0
    i, p = np.nonzero(done)
    triplets = Triplets(
        anchor=pairs.anchors.row[i],
        positive=pairs.positive[i, p],
        negative=negative[i, p],
        kind=kind[i, p],
        d_ap=2 - 2 * pairs.similarity[i, p],
        d_an=2 - 2 * similarity[i, p],
    )
    reason = f"no_{'_or_'.join(k.replace('-', '_') for k, _ in rule.shares)}_negative"
    counts = {
        "pairs": int(there.sum()),
        "fallback": int((done & (kind != pairs.first_kind)).sum()),
        "guarded": int((guarded & there).sum()),
        "anchors_without_positive": int((~there.any(axis=1)).sum()),
        reason: int((there & ~done).sum()),
    }
    return triplets, counts
