"""What a triplet is, and the exact scan that finds the negatives. NumPy and numba only.

Distances are squared Euclidean distances of L2-normalised embeddings, d = 2 - 2 s with s = a.b, so the code
compares similarities s. Stored embeddings are multiples of 2^-11 (`to_grid`): every product and sum is exact
in float32, and no tile size, thread count or order of summing changes a comparison.

- positive: another row of the anchor's label, and not a copy of it (equal content).
- semi-hard negative of (a, p): another label and d_ap < d_an < d_ap + margin (FaceNet, section 3.2,
  https://arxiv.org/abs/1503.03832).
- hard negative of (a, p): another label and d_an <= d_ap.

Each is an interval lo < s <= hi of similarities, and a scan fills *slots*: one interval of one anchor each.
Rows are ordered by label, so the anchor's own class is one range of rows to leave out.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

import numba
import numpy as np
import scipy
from threadpoolctl import ThreadpoolController


def _load_blas(name: str) -> None:
    """A module of scipy.linalg without the others, which take a tenth of a second."""
    if name not in sys.modules:
        spec = PathFinder.find_spec(name, [f"{scipy.__path__[0]}/linalg"])
        assert spec and spec.loader
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


_load_blas("scipy.linalg.cython_blas")  # of numba's np.dot: here, so that it is limited too
_blas = ThreadpoolController().select(user_api="blas")

KINDS = ("semi-hard", "hard")  # a triplet's kind is stored as its position here
GRID = 2048.0  # stored embeddings are multiples of 1 / GRID
ANCHOR_BLOCK = 256  # anchors that share an order of visiting column blocks: part of what `random` means
COLUMN_BLOCK = 4096  # rows dealt to one column block on average: part of what `random` means too
TILE = (512, 512)  # anchors x columns of one matrix product: only speed
TASK = 2048  # anchors that a thread takes at a time, or an equal share if they are fewer: only speed
NONE = np.iinfo(np.int64).max  # "no row": larger than every row, so that ties to the lower row just work

_compile = numba.njit(nogil=True, cache=True)


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
    pick: str = "random"
    margin: float = 0.2
    positives: int = 1
    seed: int = 0
    round: int = 0
    min_negative_distance: float = 0.0
    min_negative_ratio: float = 0.0

    def __post_init__(self) -> None:
        kinds = [kind for kind, _ in self.shares]
        if not kinds or len(set(kinds)) != len(kinds) or not set(kinds) <= set(KINDS):
            raise ValueError(f"negatives must be different kinds out of {', '.join(KINDS)}; found {kinds}")
        if any(not share > 0 for _, share in self.shares):
            raise ValueError(f"every kind's share must be above 0; found {dict(self.shares)}")
        if self.pick not in ("random", "nearest"):
            raise ValueError(f"pick must be random or nearest; found {self.pick!r}")
        if not 0 < self.margin <= 4:
            raise ValueError(f"margin must be above 0 and at most 4 (distances are 0 to 4); found {self.margin}")
        if self.positives < 1:
            raise ValueError(f"positives must be at least 1; found {self.positives}")
        if not 0 <= self.min_negative_distance < 4:
            raise ValueError(f"min_negative_distance must be in [0, 4); found {self.min_negative_distance}")
        if not 0 <= self.min_negative_ratio <= 100:
            raise ValueError(f"min_negative_ratio must be 0 to 100; found {self.min_negative_ratio}")

    @property
    def kinds(self) -> tuple[int, ...]:
        return tuple(KINDS.index(kind) for kind, _ in self.shares)

    def key(self, purpose: str) -> np.uint64:
        """The key of one kind of draw: a new round, seed or purpose draws anew."""
        return draw_key(self.seed, self.round, purpose)


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
        return Triplets(**{name: column[where] for name, column in vars(self).items()})

    @staticmethod
    def none() -> "Triplets":
        rows, distances = np.empty(0, np.int64), np.empty(0, np.float32)
        kinds = np.empty(0, np.int8)
        return Triplets(anchor=rows, positive=rows, negative=rows, kind=kinds, d_ap=distances, d_an=distances)

    @staticmethod
    def concatenate(parts: Sequence["Triplets"]) -> "Triplets":
        names = Triplets.__dataclass_fields__
        return Triplets(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def one_blas_thread() -> Any:
    """A context in which a matrix product stays on the thread that asks for it."""
    return _blas.limit(limits=1)


def to_grid(embeddings: np.ndarray) -> np.ndarray:
    """Rounds float32 [rows, dim] to multiples of 2^-11; distances move by at most about .002."""
    return (np.rint(embeddings * np.float32(GRID)) / np.float32(GRID)).astype(np.float32)


# ---- Draws: a hash of (seed, round, purpose, rows), so no draw depends on how the work is cut. ----


def draw_key(seed: int, round: int, purpose: str) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}/{round}/{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


@_compile
def _hash(h, value):  # one round of splitmix64 (Steele et al., https://doi.org/10.1145/2660193.2660195)
    z = (h ^ np.uint64(value)) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_compile
def _below(h, n):
    """A hash as a whole number in [0, n), uniform to n / 2^53."""
    return np.int64(np.float64(h >> np.uint64(11)) * (1.0 / 9007199254740992.0) * n)


@_compile
def hashes(key, first, second):
    """uint64 [n]: a hash for each (key, first[i], second[i]), both int64 [n]."""
    out = np.empty(len(first), np.uint64)
    for i in range(len(first)):
        out[i] = _hash(_hash(key, first[i]), second[i])
    return out


def row_hashes(key: np.uint64, rows: np.ndarray) -> np.ndarray:
    """uint64 [n]: a hash for each of the int64 [n] rows."""
    return hashes(key, rows, np.zeros_like(rows))


def column_block_of(rule: Rule, rows: np.ndarray, blocks: int) -> np.ndarray:
    """int64 [n]: to which of the column blocks each row is dealt, uniformly and by hash alone."""
    share = (row_hashes(rule.key("deal"), rows) >> np.uint64(11)) * 2.0**-53
    return (share * blocks).astype(np.int64)


def column_blocks(rows: int) -> int:
    """How many column blocks a corpus of that many rows is dealt into."""
    return max(1, -(-rows // COLUMN_BLOCK))


def visiting_order(rule: Rule, anchor_block: int, blocks: int) -> np.ndarray:
    """int64 [blocks]: the order in which an anchor block visits the column blocks."""
    numbers = np.arange(blocks)
    return np.argsort(hashes(rule.key("visit"), np.full(blocks, anchor_block), numbers), kind="stable")


@_compile
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
            k = _below(_hash(_hash(key, rows[i]), tries), size)
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


# ---- From distances to intervals of similarities. ----


@_compile
def _next_below(s):
    return np.float32(np.nextafter(np.float32(s), np.float32(-np.inf)))


@_compile
def _largest_at_least(distance):
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


@_compile
def _interval(kind, similarity, margin, min_distance, min_ratio):
    """(lo, hi, hi without the distance guards): a row of another label qualifies if lo < s <= hi."""
    d_ap = 2.0 - 2.0 * np.float64(similarity)
    if kind == 0:  # d_ap < d_an < d_ap + margin
        lo, free = _largest_at_least(d_ap + margin), _next_below(similarity)
    else:  # d_an <= d_ap
        lo, free = _next_below(similarity), np.float32(np.inf)
    hi = free
    if min_distance > 0:
        hi = min(hi, _largest_at_least(min_distance))
    if min_ratio > 0:
        hi = min(hi, _largest_at_least(min_ratio * d_ap))
    return lo, max(hi, lo), max(free, lo)


@_compile
def _intervals(kind, positive, similarity, margin, min_distance, min_ratio):
    lo = np.full(positive.shape, np.inf, np.float32)  # no positive: nothing qualifies
    hi = np.full(positive.shape, -np.inf, np.float32)
    free = np.full(positive.shape, -np.inf, np.float32)
    for i in range(positive.shape[0]):
        for p in range(positive.shape[1]):
            if positive[i, p] >= 0:
                lo[i, p], hi[i, p], free[i, p] = _interval(kind, similarity[i, p], margin, min_distance, min_ratio)
    return lo, hi, free


@_compile
def _first_kinds(key, rows, positive, kinds, shares):
    out = np.empty(positive.shape, np.int8)
    total = shares.sum()
    for i in range(positive.shape[0]):
        for p in range(positive.shape[1]):
            out[i, p] = _first_kind(_hash(_hash(key, rows[i]), positive[i, p]), kinds, shares, total)
    return out


@_compile
def _first_kind(h, kinds, shares, total):
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
        lo, hi, free = _intervals(
            kind, positive, similarity, rule.margin, rule.min_negative_distance, rule.min_negative_ratio
        )
        if KINDS[kind] == "hard" and rule.pick == "nearest" and not rule.min_negative_ratio:
            # The nearest hard negative is the nearest row there is: one slot serves all P pairs, and
            # `choose` checks it against each pair's d_ap.
            limit = _largest_at_least(rule.min_negative_distance) if rule.min_negative_distance else np.inf
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
        first_kind=_first_kinds(
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


# ---- The scan. ----


@_compile
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


@_compile
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


@_compile
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


@_compile
def _count_between(scores, lo, hi):
    count = np.int32(0)  # as wide as a score, so that both take the same lanes
    for j in range(len(scores)):
        count += np.int32((scores[j] > lo) & (scores[j] <= hi))
    return np.int64(count)


@_compile
def _pick_between(scores, lo, hi, which):
    """The position of the which-th score in (lo, hi]; there must be one."""
    start, width = 0, 32
    while True:
        count = _count_between(scores[start : start + width], lo, hi)  # vectorised, so whole steps are cheap
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


@_compile
def _nearest_between(scores, rows, lo, hi):
    """The position of the largest score in (lo, hi], ties to the lower row; there must be one."""
    best = -1
    for j in range(len(scores)):
        if lo < scores[j] <= hi and (
            best < 0 or scores[j] > scores[best] or (scores[j] == scores[best] and rows[j] < rows[best])
        ):
            best = j
    return best


@_compile
def _keep_random(scores, rows, lo, hi, key, anchor, positive_of_slot, block, active, best, best_row):
    """Fills the empty slots of the active anchors with one of the rows in (lo, hi], each as likely as another."""
    for line in range(scores.shape[0]):
        i = active[line]
        for q in range(hi.shape[1]):
            if best_row[i, q] != NONE:
                continue
            count = _count_between(scores[line], lo[i, q], hi[i, q])
            if count == 0:
                continue
            h = _hash(_hash(_hash(_hash(key, anchor[i]), positive_of_slot[i, q]), block), q)
            j = _pick_between(scores[line], lo[i, q], hi[i, q], _below(h, count))
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


def _qualifying_bounds(rule: Rule, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Per pair the (lo, hi] that its kinds span together without guards: what an identity guard can act on."""
    bounds = [_intervals(kind, pairs.positive, pairs.similarity, rule.margin, 0.0, 0.0) for kind in rule.kinds]
    return np.minimum.reduce([b[0] for b in bounds]), np.maximum.reduce([b[2] for b in bounds])


_buffers = threading.local()


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right.T in a buffer that the thread's next product overwrites: fresh pages cost a tenth of the scan."""
    size = len(left) * len(right)
    if not hasattr(_buffers, "scores") or _buffers.scores.size < size:
        _buffers.scores = np.empty(size, np.float32)
    return np.dot(left, right.T, out=_buffers.scores[:size].reshape(len(left), len(right)))


def scan_nearest(rule: Rule, pairs: Pairs, columns: Iterable[Block], threads: int) -> Found:
    """Fills each slot with its nearest row among the columns; the parts of a split list merge with `merge`.

    Threads go over blocks of anchors, each with a single-threaded BLAS: two BLAS threads and a parallel loop
    that take turns were two to four times slower.
    """
    found = Found.nothing(pairs)
    bounds = _qualifying_bounds(rule, pairs)
    lo, hi, best = _ordered(pairs.lo), _ordered(pairs.hi), _ordered(found.similarity)
    embedding = np.ascontiguousarray(pairs.anchors.embedding)
    task = max(1, min(TASK, -(-len(embedding) // threads)))
    starts = range(0, len(embedding), task)

    def scan(start: int, block: Block) -> None:
        cut = slice(start, start + task)
        anchors = pairs.anchors.take(cut)
        own, skip = np.searchsorted(block.row, pairs.own[cut]), _forbidden(anchors, block)
        guard = bounds[0][cut], bounds[1][cut], found.guarded[cut]
        slots = lo[cut], hi[cut], best[cut], found.row[cut]
        _scan_nearest(embedding[cut], block.embedding, block.row, TILE, own, skip, guard, slots)

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
    bounds = _qualifying_bounds(rule, pairs)
    key = rule.key("negative")
    positive_of_slot = np.zeros(pairs.lo.shape, np.int64)
    for slots in (*pairs.slot.values(), *pairs.watch.values()):
        positive_of_slot[:, slots] = pairs.positive
    first = np.zeros(pairs.positive.shape, np.int64)  # the slot that a pair waits for
    for kind, slots in pairs.slot.items():
        first = np.where(pairs.first_kind == kind, slots, first)

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
            scores = _product(part.embedding, block.embedding)
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


# ---- Triplets inside a pack. ----


@_compile
def _select_within(
    embedding, rows, label, content, group, starts, corpus, corpus_starts,
    kinds, shares, nearest, margin, min_distance, min_ratio, kind_key, keys,
):  # fmt: skip
    packs, most, pairs = len(starts) - 1, 0, 0
    for pack in range(packs):
        most = max(most, starts[pack + 1] - starts[pack])
        for a in range(starts[pack], starts[pack + 1]):
            for p in range(starts[pack], starts[pack + 1]):
                pairs += label[a] == label[p] and a != p
    room = corpus.shape[1] + pairs
    place, distance = np.empty((5, room), np.int16), np.empty((2, room), np.float32)
    ends, counts = np.zeros(packs + 1, np.int64), np.zeros(2, np.int64)
    free_to_use, shut_out = np.empty(most, np.float32), np.empty(most, np.float32)
    lo, hi = np.empty(len(kinds), np.float32), np.empty(len(kinds), np.float32)
    count = np.empty(len(kinds), np.int64)
    made, total = 0, shares.sum()
    for pack in range(packs):
        cut = slice(starts[pack], starts[pack + 1])
        row, here, n = rows[cut], label[cut], starts[pack + 1] - starts[pack]
        code, burst = content[cut], group[cut]  # empty where the corpus has no copies or no groups
        scores = np.dot(embedding[cut], embedding[cut].T)
        taken = np.zeros((n, n), np.bool_)
        for t in range(corpus_starts[pack], corpus_starts[pack + 1]):
            for side in range(3):
                place[side, made] = np.flatnonzero(row == corpus[side, t])[0]
            a, p = place[0, made], place[1, made]
            place[3, made], place[4, made] = corpus[3, t], 0
            distance[0, made], distance[1, made] = 2 - 2 * scores[a, p], 2 - 2 * scores[a, place[2, made]]
            taken[a, p] = True
            made += 1
        for a in range(n):
            any_shut = False
            for j in range(n):
                shut = (len(code) > 0 and code[j] == code[a]) or (
                    len(burst) > 0 and burst[a] >= 0 and burst[j] == burst[a]
                )
                other = here[j] != here[a]
                free_to_use[j] = scores[a, j] if other and not shut else -np.inf
                shut_out[j] = scores[a, j] if other and shut else -np.inf
                any_shut |= other and shut
            for p in range(n):
                if a == p or here[a] != here[p] or taken[a, p] or (len(code) > 0 and code[a] == code[p]):
                    continue
                acted = False
                for k in range(len(kinds)):
                    lo[k], hi[k], free = _interval(kinds[k], scores[a, p], margin, min_distance, min_ratio)
                    count[k] = _count_between(free_to_use[:n], lo[k], hi[k])
                    if any_shut:
                        acted |= _count_between(shut_out[:n], lo[k], free) > 0
                    if hi[k] < free:
                        acted |= _count_between(free_to_use[:n], max(lo[k], hi[k]), free) > 0
                counts[1] += acted
                first = _first_kind(_hash(_hash(kind_key, row[a]), row[p]), kinds, shares, total)
                chosen = -1
                for attempt in range(2):
                    for k in range(len(kinds)):
                        if chosen < 0 and count[k] > 0 and (attempt == 1 or kinds[k] == first):
                            chosen = k
                if chosen < 0:
                    counts[0] += 1
                    continue
                if nearest:
                    negative = _nearest_between(free_to_use[:n], row, lo[chosen], hi[chosen])
                else:
                    h = _hash(_hash(_hash(keys[pack], row[a]), row[p]), kinds[chosen])
                    negative = _pick_between(free_to_use[:n], lo[chosen], hi[chosen], _below(h, count[chosen]))
                place[0, made], place[1, made], place[2, made] = a, p, negative
                place[3, made], place[4, made] = kinds[chosen], 1
                distance[0, made], distance[1, made] = 2 - 2 * scores[a, p], 2 - 2 * scores[a, negative]
                made += 1
        ends[pack + 1] = made
    return place[:, :made], distance[:, :made], ends, counts


def select_within(
    rule: Rule, block: Block, label: np.ndarray, starts: np.ndarray, corpus: Triplets, corpus_starts: np.ndarray,
    names: Sequence[str],
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, int]]:  # fmt: skip
    """The triplets of packs: those from the corpus first, then one for every other ordered pair of a label.

    Args:
      block: the rows of all packs, one pack after the other. label: int64 [n]. starts: int64 [packs + 1], where
        each pack's rows begin.
      corpus: triplets over the packs' rows; corpus_starts: int64 [packs + 1], where each pack's begin.
      names: of the packs, which are part of the draw.
    Returns:
      anchor, positive, negative (positions in their pack), kind, scope, int16 [T], d_ap, d_an, float32 [T]; int64
      [packs + 1], where each pack's triplets begin; counts `skipped` and `guarded` of pairs.
    """
    none = np.empty(0, np.int64)
    place, distance, ends, counts = _select_within(
        np.ascontiguousarray(block.embedding),
        block.row,
        label,
        none if block.content is None else block.content,
        none if block.group is None else block.group,
        starts,
        np.stack([corpus.anchor, corpus.positive, corpus.negative, corpus.kind.astype(np.int64)]),
        corpus_starts,
        np.array(rule.kinds),
        np.array([share for _, share in rule.shares]),
        rule.pick == "nearest",
        rule.margin,
        rule.min_negative_distance,
        rule.min_negative_ratio,
        rule.key("kind"),
        np.array([rule.key(f"pack-negative/{name}") for name in names], np.uint64),
    )
    columns = dict(zip(("anchor", "positive", "negative", "kind", "scope"), place, strict=True))
    columns |= zip(("d_ap", "d_an"), distance, strict=True)
    return columns, ends, dict(zip(("skipped", "guarded"), counts.tolist(), strict=True))


# ---- In memory. ----


def mine_arrays(
    embeddings: np.ndarray, labels: np.ndarray, rule: Rule | None = None, threads: int = 0
) -> tuple[Triplets, dict[str, int]]:
    """Mines arrays, without files: every row is an anchor, every other row a candidate.

    Given rows in the order of a run directory's train split, these are the triplets of scope corpus that
    `pipeline.mine` selects with the same rule.

    Args:
      embeddings: numbers [n, dim], L2-normalised here. labels: [n], of any type that NumPy sorts.
      threads: 0 for as many as there are cores.
    Returns:
      Triplets whose anchor, positive and negative are positions in the arrays given, and the counts of `choose`.
    Raises:
      ValueError: for a shape that is not as above, and for a row that is zero or not finite.
    """
    rule, labels = rule or Rule(), np.asarray(labels)
    if np.ndim(embeddings) != 2 or labels.shape != np.shape(embeddings)[:1]:
        raise ValueError(f"expected embeddings [n, dim] and labels [n]; found {np.shape(embeddings)}, {labels.shape}")
    norm = np.linalg.norm(np.asarray(embeddings, np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norm[:, 0]) & (norm[:, 0] > 0)))
    if len(bad):
        raise ValueError(f"{len(bad)} embeddings are zero or not finite: rows {bad[:5].tolist()}")
    order = np.argsort(labels, kind="stable")  # a class is a range of rows
    rows = np.arange(len(order))
    corpus = Block(row=rows, embedding=to_grid((embeddings / norm)[order].astype(np.float32)))
    own = np.stack([np.searchsorted(labels[order], labels[order], side) for side in ("left", "right")], axis=1)
    positive = draw_positives(rule, rows, own)
    pairs = make_pairs(rule, corpus, own, positive, corpus.embedding[np.where(positive >= 0, positive, rows[:, None])])
    blocks = column_blocks(len(rows))
    dealt = column_block_of(rule, rows, blocks)
    columns = [corpus.take(dealt == number) for number in range(blocks)]
    threads = threads or os.cpu_count() or 1
    if rule.pick == "random":
        found = scan_random(rule, pairs, 0, columns.__getitem__, blocks, threads)
    else:
        found = scan_nearest(rule, pairs, columns, threads)
    chosen, counts = choose(rule, pairs, found)
    sides = {side: order[getattr(chosen, side)] for side in ("anchor", "positive", "negative")}
    return replace(chosen, **sides), counts
