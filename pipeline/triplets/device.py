"""The scan once more, for an accelerator: a matrix product and masked maxima in `keras.ops`, compiled by XLA.

It finds what `scan` finds, bit for bit. The device gets embeddings as whole numbers, multiples of the grid's unit of at
most 2^11. TF32 holds these, float32 their products and sums of at most 2^22: nothing is rounded, in whatever order. An
int32 has eight bits more, for the place in a group of 256 columns. So one reduction, which XLA fuses with all masks,
finds the largest similarity and the lowest row that has it: a tile is written once, and read once a slot or less.

It runs where Keras' backend computes: TensorFlow in the product; JAX as well.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from pipeline.triplets.columns import ANCHOR_BLOCK, COLUMN_BLOCK, visiting_order
from pipeline.triplets.draws import below, mix
from pipeline.triplets.kernels import compiled
from pipeline.triplets.rows import GRID, NONE, Block, Found, Pairs
from pipeline.triplets.rule import Rule
from pipeline.triplets.scan import qualifying_bounds, slots_to_fill

UNIT = GRID * GRID  # of similarities: 2^22
GROUP = 256  # columns whose place is in the low bits of an int32
NOTHING = -(2**31)  # below every similarity with its place
NO_ROW = 2**31 - 1  # above every row
WIDTH = COLUMN_BLOCK + COLUMN_BLOCK // 8  # a block of dealt columns, which vary by 64: padded, all have one shape
ANCHORS = (2048, 16384)  # of a tile: at least, so that items of a job share a shape, and at most: 300 MB
LANES = 8  # anchor blocks that visit a column block each in one call


class Columns(NamedTuple):
    """Column blocks on the device. embedding: float32 [..., C, dim], in units of the grid; row, and content and group
    where the corpus has them: int32 [..., C], row -1 in the padding."""

    embedding: Any
    row: Any
    content: Any
    group: Any


class Anchors(NamedTuple):
    """Anchors and what they want. own: int32 [..., A, 2]; lo and hi of slots: [..., A, Q]; of pairs without guards:
    [..., A, P], all in units of similarities. Zeros want nothing, so padding is zeros."""

    embedding: Any
    own: Any
    content: Any
    group: Any
    lo: Any
    hi: Any
    pair_lo: Any
    pair_hi: Any


def by_xla(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled by XLA, where Keras' backend has it."""
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            return tf.function(function, jit_compile=True, autograph=False)  # type: ignore[no-any-return]
        case "jax":
            import jax

            return jax.jit(function)  # type: ignore[no-any-return]
    return function


def upload(blocks: Sequence[Block], width: int = WIDTH) -> Columns:
    """Column blocks, each of ascending rows, as one Columns [len(blocks), C, ...] on the device.

    Args:
      width: C is a multiple of it, and it is one of 256: only speed.
    """
    size = max(1, *(-(-len(block.row) // width) for block in blocks)) * width

    def stacked(arrays: list[np.ndarray | None], fill: int = 0) -> Any:
        there = [_padded(array, size, fill) for array in arrays if array is not None]
        return ops.convert_to_tensor(np.stack(there)) if there else None

    return Columns(
        embedding=stacked([block.embedding * np.float32(GRID) for block in blocks]),
        row=stacked([block.row.astype(np.int32) for block in blocks], -1),
        content=stacked([_codes(block.content) for block in blocks]),
        group=stacked([_codes(block.group) for block in blocks]),
    )


def _padded(array: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
    return np.concatenate([array, np.full((size - len(array), *array.shape[1:]), fill, array.dtype)])


def _codes(codes: np.ndarray | None) -> np.ndarray | None:
    return None if codes is None else codes.astype(np.int32)


def _units(bound: np.ndarray) -> np.ndarray:
    """int32: a similarity in units is above it, or not, as the similarity is of the float32 bound."""
    return np.clip(np.floor(bound.astype(np.float64) * UNIT), -UNIT - 1, UNIT).astype(np.int32)


def _anchors(rule: Rule, pairs: Pairs) -> Anchors:
    """All of them, on the host."""
    pair_lo, pair_hi = qualifying_bounds(rule, pairs)
    return Anchors(
        embedding=pairs.anchors.embedding * np.float32(GRID),
        own=pairs.own.astype(np.int32),
        content=_codes(pairs.anchors.content),
        group=_codes(pairs.anchors.group),
        lo=_units(pairs.lo),
        hi=_units(pairs.hi),
        pair_lo=_units(pair_lo),
        pair_hi=_units(pair_hi),
    )


def _cut(anchors: Anchors, start: int, shape: tuple[int, ...]) -> Anchors:
    """Those from `start` on, in a shape [..., A] and padded to it."""
    size = math.prod(shape)
    parts = (None if array is None else _padded(array[start : start + size], size) for array in anchors)
    return Anchors(*(None if part is None else part.reshape(*shape, *part.shape[1:]) for part in parts))


# ---- On the device. A tile is [..., A, C / 256, 256]. ----


def _tile(anchors: Anchors, columns: Columns) -> tuple[Any, Any]:
    """int32, the similarities in units, NOTHING where a row is no negative of the anchor; and bool [..., A, P], whether
    a guard by identity left out a row that would have qualified for the pair."""
    grouped = (*anchors.own.shape[:-1], -1, GROUP)
    columns_of = (*columns.row.shape[:-1], 1, -1, GROUP)
    units = ops.matmul(anchors.embedding, ops.swapaxes(columns.embedding, -1, -2))
    units = ops.reshape(ops.cast(units, "int32"), grouped)
    row = ops.reshape(columns.row, columns_of)
    first, last = (anchors.own[..., k, None, None] for k in (0, 1))
    units = ops.where((row < 0) | ((first <= row) & (row < last)), NOTHING, units)
    shut = None
    for codes, others in ((anchors.content, columns.content), (anchors.group, columns.group)):
        if codes is not None and others is not None:
            code = codes[..., None, None]
            same = (code != -1) & (code == ops.reshape(others, columns_of))
            shut = same if shut is None else shut | same
    if shut is None:
        return units, ops.zeros(anchors.pair_lo.shape, "bool")
    acted = [ops.any(shut & _between(units, *bounds), axis=-1) for bounds in _each(anchors.pair_lo, anchors.pair_hi)]
    return ops.where(shut, NOTHING, units), ops.any(ops.stack(acted, axis=-2), axis=-1)


def _each(lo: Any, hi: Any) -> list[tuple[Any, Any]]:
    """The bounds [..., A, 1, 1] of each slot or pair."""
    return [(lo[..., q, None, None], hi[..., q, None, None]) for q in range(lo.shape[-1])]


def _between(units: Any, lo: Any, hi: Any) -> Any:
    return (lo < units) & (units <= hi)


@by_xla
def _nearest(anchors: Anchors, columns: Columns) -> tuple[Any, Any, Any]:
    """Against all of the column blocks: int32 [A, Q], the largest similarity of a slot and the lowest row that has it,
    NO_ROW where there is none; bool [A, P], as of `_tile`."""
    width = columns.row.shape[-1]
    place = ops.reshape(ops.arange(width, dtype="int32"), (-1, GROUP))

    def visit(number: Any, best: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        block = Columns(*(None if array is None else array[number] for array in columns))
        units, acted = _tile(anchors, block)
        packed = ops.where(units == NOTHING, NOTHING, units * GROUP + (GROUP - 1 - place % GROUP))
        limits = [(hi + 1) * GROUP for _, hi in _each(anchors.lo, anchors.hi)]
        tops = [ops.max(ops.where(packed < limit, packed, NOTHING), axis=-1) for limit in limits]
        of_groups = ops.stack(tops, axis=-2)  # [A, Q, C / 256]
        values = of_groups // GROUP
        places = place[:, 0] + (GROUP - 1 - (of_groups - values * GROUP))
        top = ops.max(values, axis=-1)
        where = ops.min(ops.where(values == top[..., None], places, width - 1), axis=-1)
        row = ops.where(top > anchors.lo, ops.take(block.row, where), NO_ROW)
        top = ops.where(row == NO_ROW, NOTHING, top)
        better = (top > best[0]) | ((top == best[0]) & (row < best[1]))
        return ops.where(better, top, best[0]), ops.where(better, row, best[1]), best[2] | acted

    nothing = [ops.full(anchors.lo.shape, fill, dtype="int32") for fill in (NOTHING, NO_ROW)]
    start = (*nothing, ops.zeros(anchors.pair_lo.shape, "bool"))
    return ops.fori_loop(0, columns.row.shape[0], visit, start)  # type: ignore[no-any-return]


def _side_by_side(columns: Sequence[Columns]) -> Columns:
    """[lanes, C, ...], all as wide as the widest."""
    width = max(block.row.shape[1] for block in columns)

    def joined(arrays: Sequence[Any], fill: int = 0) -> Any:
        if arrays[0] is None:
            return None
        more = [[(0, 0), (0, width - array.shape[1]), (0, 0)][: len(array.shape)] for array in arrays]
        return ops.concatenate([ops.pad(*pair, constant_values=fill) for pair in zip(arrays, more, strict=True)])

    embedding, row, content, group = zip(*columns, strict=True)
    return Columns(joined(embedding), joined(row, -1), joined(content), joined(group))


@by_xla
def _count(anchors: Anchors, columns: Sequence[Columns]) -> tuple[Any, Any]:
    """int32 [lanes, A, Q, C / 256]: the rows of each group that qualify for a slot; bool [lanes, A, P], as of
    `_tile`."""
    units, acted = _tile(anchors, _side_by_side(columns))
    counts = [
        ops.sum(ops.cast(_between(units, *bounds), "int32"), axis=-1) for bounds in _each(anchors.lo, anchors.hi)
    ]
    return ops.stack(counts, axis=-2), acted


@by_xla
def _pick(anchors: Anchors, columns: Sequence[Columns], group: Any, which: Any) -> tuple[Any, Any]:
    """int32 [lanes, A, Q]: similarity and row of the which-th that qualifies for a slot in a group."""
    block = _side_by_side(columns)
    units, _ = _tile(anchors, block)
    units = ops.take_along_axis(units, group[..., None], axis=-2)  # [lanes, A, Q, 256]
    passed = ops.cumsum(ops.cast(_between(units, anchors.lo[..., None], anchors.hi[..., None]), "int32"), axis=-1)
    place = ops.sum(ops.cast(passed <= which[..., None], "int32"), axis=-1)
    place = ops.minimum(place, GROUP - 1)  # where there is none
    similarity = ops.take_along_axis(units, place[..., None], axis=-1)[..., 0]
    return similarity, ops.take_along_axis(block.row[:, None], group * GROUP + place, axis=-1)


# ---- On the host. ----


def scan_nearest(rule: Rule, pairs: Pairs, columns: Columns, anchors: tuple[int, int] = ANCHORS) -> Found:
    """What `scan.scan_nearest` finds among these column blocks.

    Args:
      anchors: of a tile, at least and at most: only speed.
    """
    every, total = _anchors(rule, pairs), len(pairs.own)
    size = min(max(anchors[0], 1 << (total - 1).bit_length()), anchors[1])
    parts = [_nearest(_cut(every, start, (size,)), columns) for start in range(0, total, size)]
    top, row, guarded = (
        np.concatenate([ops.convert_to_numpy(part) for part in of_parts])[:total]
        for of_parts in zip(*parts, strict=True)
    )
    return Found(similarity=_similarity(top, row), row=_rows(row), guarded=guarded)


def _similarity(units: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.where(row == NO_ROW, -np.inf, units / UNIT).astype(np.float32)


def _rows(row: np.ndarray) -> np.ndarray:
    return np.where(row == NO_ROW, NONE, row.astype(np.int64))


@compiled
def _draw(key, anchor, positive, number, count, wanted):
    """For each wanted slot one of the rows that qualify: in which group, and which there. group -1 without one."""
    group, which = np.full(wanted.shape, -1, np.int32), np.zeros(wanted.shape, np.int32)
    for i in range(wanted.shape[0]):
        for q in range(wanted.shape[1]):
            total = count[i, q].sum()
            if wanted[i, q] and total > 0:
                left = below(mix(mix(mix(mix(key, anchor[i]), positive[i, q]), number[i]), q), total)
                group[i, q] = 0
                while left >= count[i, q, group[i, q]]:
                    left -= count[i, q, group[i, q]]
                    group[i, q] += 1
                which[i, q] = left
    return group, which


def scan_random(
    rule: Rule, pairs: Pairs, first_anchor_block: int, column: Callable[[int], Columns], blocks: int
) -> Found:
    """What `scan.scan_random` finds. column: a Columns of one column block, by number.

    The device counts what qualifies, the host draws by its 64-bit hashes, and the device looks up what was drawn.
    """
    found, every, key = Found.nothing(pairs), _anchors(rule, pairs), rule.key("negative")
    positive, first = slots_to_fill(pairs)
    for start in range(0, len(pairs.own), LANES * ANCHOR_BLOCK):
        cut = slice(start, start + LANES * ANCHOR_BLOCK)
        anchors, rows = _cut(every, start, (LANES, ANCHOR_BLOCK)), pairs.anchors.row[cut]
        lane = np.arange(len(rows)) // ANCHOR_BLOCK
        number = first_anchor_block + start // ANCHOR_BLOCK
        orders = [visiting_order(rule, number + k, blocks) for k in range(lane[-1] + 1)]
        for numbers in np.stack(orders, axis=1):
            waiting = (pairs.positive[cut] >= 0) & (np.take_along_axis(found.row[cut], first[cut], axis=1) == NONE)
            active = waiting.any(axis=1)
            if not active.any():
                break
            busy = np.unique(lane[active])
            numbers[np.setdiff1d(lane, busy)] = numbers[busy[0]]  # a lane that is done reads no block of its own
            here = [column(int(number)) for number in numbers]
            here += [here[0]] * (LANES - len(here))
            count, acted = (_lines(array, len(rows)) for array in _count(anchors, here))
            found.guarded[cut] |= acted & active[:, None]
            wanted = (found.row[cut] == NONE) & active[:, None]
            group, which = _draw(key, rows, positive[cut], numbers[lane], count, wanted)
            if (group >= 0).any():
                drawn = (_cut_lanes(array) for array in (np.maximum(group, 0), which))
                units, row = (_lines(array, len(rows)) for array in _pick(anchors, here, *drawn))
                found.similarity[cut] = np.where(group >= 0, units / UNIT, found.similarity[cut])
                found.row[cut] = np.where(group >= 0, row, found.row[cut])
    return found


def _lines(of_lanes: Any, count: int) -> np.ndarray:
    """[lanes, A, ...] as [count, ...], on the host."""
    array: np.ndarray = ops.convert_to_numpy(of_lanes)
    return array.reshape(-1, *array.shape[2:])[:count]


def _cut_lanes(array: np.ndarray) -> np.ndarray:
    return _padded(array, LANES * ANCHOR_BLOCK).reshape(LANES, ANCHOR_BLOCK, -1)
