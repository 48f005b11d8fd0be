"""The scan once more, for an accelerator: a matrix product and masked maxima in `keras.ops`, compiled by XLA.

It finds what `scan` finds, bit for bit. Embeddings are multiples of 2^-11 and no longer than 1: TF32 holds each number,
float32 each sum of products, in whatever order. A similarity is a whole number of 2^-22, at most 2^22 of them, and an
int32 has eight bits more: for the place in a group of 256 columns. So one reduction, which XLA fuses with all masks,
finds the largest similarity and the lowest row that has it. A tile is written once and read once for all slots, once
more for guards by identity.

It runs where Keras' backend computes: TensorFlow in the product; JAX as well.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
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
NOTHING = -(2**23)  # below every similarity in units, and an int32 with its place too
NO_ROW = 2**31 - 1  # above every row
WIDTH = COLUMN_BLOCK + GROUP  # nearly all blocks of dealt columns, which vary by 64: padded, they have one shape
ANCHORS = (2048, 16384)  # of a tile: at least, so that items of a job share a shape, and at most: 300 MB
LANES = 8  # anchor blocks that visit a column block each in one call


class Columns(NamedTuple):
    """Column blocks on the device. embedding: float32 [..., C, dim]; row, and content and group where the corpus has
    them: int32 [..., C]."""

    embedding: Any
    row: Any
    content: Any
    group: Any


PADDING = Columns(0, -1, 0, 0)


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
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)  # type: ignore[no-any-return]
    if backend == "jax":
        import jax

        return jax.jit(function)  # type: ignore[no-any-return]
    return function


def upload(blocks: Sequence[Block], width: int = WIDTH) -> Columns:
    """Column blocks, each of ascending rows, as one Columns [len(blocks), C, ...] on the device.

    Args:
      width: C is at least that, and a multiple of 256: only speed.
    """
    size = -(-max(width, *(len(block.row) for block in blocks)) // GROUP) * GROUP

    def stacked(arrays: Sequence[np.ndarray | None], fill: int) -> Any:
        there = [_padded(array, size, fill) for array in arrays if array is not None]
        return ops.convert_to_tensor(np.stack(there)) if there else None

    of_blocks = [(x.embedding, _int32(x.row), _int32(x.content), _int32(x.group)) for x in blocks]
    return Columns(*map(stacked, zip(*of_blocks, strict=True), PADDING))


def _padded(array: np.ndarray, size: int, fill: int = 0) -> np.ndarray:
    return np.concatenate([array, np.full((size - len(array), *array.shape[1:]), fill, array.dtype)])


def _int32(numbers: np.ndarray | None) -> np.ndarray | None:
    return None if numbers is None else numbers.astype(np.int32)


def _units(bound: np.ndarray) -> np.ndarray:
    """int32: a similarity in units is above it, or not, as the similarity is of the float32 bound."""
    return np.clip(np.floor(bound.astype(np.float64) * UNIT), -UNIT - 1, UNIT).astype(np.int32)


def _anchors(rule: Rule, pairs: Pairs, start: int, shape: tuple[int, ...]) -> Anchors:
    """Those from `start` on, in a shape [..., A] and padded to it; on the host."""
    size = math.prod(shape)
    cut = slice(start, start + size)
    part = pairs.anchors.take(cut)
    bounds = qualifying_bounds(rule, replace(pairs, positive=pairs.positive[cut], similarity=pairs.similarity[cut]))

    def shaped(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else _padded(array, size).reshape(*shape, *array.shape[1:])

    whole = [_int32(numbers) for numbers in (pairs.own[cut], part.content, part.group)]
    in_units = [_units(bound) for bound in (pairs.lo[cut], pairs.hi[cut], *bounds)]
    return Anchors(*map(shaped, (part.embedding, *whole, *in_units)))


# ---- On the device. A tile is [..., A, C / 256, 256]. ----


def _tile(anchors: Anchors, columns: Columns) -> tuple[Any, Any]:
    """int32, the similarities in units, NOTHING where a row is no negative of the anchor; and bool [..., A, P], whether
    a guard by identity left out a row that would have qualified for the pair."""
    grouped = (*anchors.own.shape[:-1], -1, GROUP)
    grouped_columns = (*columns.row.shape[:-1], 1, -1, GROUP)
    units = ops.matmul(anchors.embedding, ops.swapaxes(columns.embedding, -1, -2))
    units = ops.reshape(ops.cast(units * UNIT, "int32"), grouped)
    row = ops.reshape(columns.row, grouped_columns)
    first, last = (anchors.own[..., k, None, None] for k in (0, 1))
    units = ops.where((row < 0) | ((first <= row) & (row < last)), NOTHING, units)
    shut = None
    for codes, others in ((anchors.content, columns.content), (anchors.group, columns.group)):
        if codes is not None and others is not None:
            code = codes[..., None, None]
            same = (code != -1) & (code == ops.reshape(others, grouped_columns))
            shut = same if shut is None else shut | same
    if shut is None:
        return units, ops.zeros(anchors.pair_lo.shape, "bool")
    acted = [ops.any(shut & _between(units, *bounds), axis=-1) for bounds in _each(anchors.pair_lo, anchors.pair_hi)]
    return ops.where(shut, NOTHING, units), ops.stack([ops.any(groups, axis=-1) for groups in acted], axis=-1)


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
    low_bits = GROUP - 1 - place % GROUP  # the lower row has the larger ones
    limits = [(hi + 1) * GROUP for _, hi in _each(anchors.lo, anchors.hi)]

    def best_of(groups: Any) -> tuple[Any, Any]:
        """Of each anchor, int32 [A]: the largest similarity, and the lowest column that has it."""
        values = groups // GROUP
        top = ops.max(values, axis=-1)
        column = place[:, 0] + (GROUP - 1 - (groups - values * GROUP))
        return top, ops.min(ops.where(values == top[:, None], column, width - 1), axis=-1)

    def visit(number: Any, best: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        block = Columns(*(None if array is None else array[number] for array in columns))
        units, acted = _tile(anchors, block)
        packed = units * GROUP + low_bits
        # Stacked only when a slot has one number an anchor: XLA would put a whole reduction into the copy.
        slots = [best_of(ops.max(ops.where(packed < limit, packed, NOTHING * GROUP), axis=-1)) for limit in limits]
        top, where = (ops.stack(of_slots, axis=-1) for of_slots in zip(*slots, strict=True))
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

    def joined(arrays: Sequence[Any], fill: int) -> Any:
        if arrays[0] is None:
            return None
        more = [[(0, 0), (0, width - array.shape[1]), (0, 0)][: len(array.shape)] for array in arrays]
        return ops.concatenate([ops.pad(*pair, constant_values=fill) for pair in zip(arrays, more, strict=True)])

    return Columns(*map(joined, zip(*columns, strict=True), PADDING))


@by_xla
def _count(anchors: Anchors, columns: Sequence[Columns]) -> tuple[list[Any], Any]:
    """int32 [lanes, A, C / 256] for each slot, the rows of a group that qualify; bool [lanes, A, P], as of `_tile`."""
    units, acted = _tile(anchors, _side_by_side(columns))
    qualify = [_between(units, *bounds) for bounds in _each(anchors.lo, anchors.hi)]
    return [ops.sum(ops.cast(those, "int32"), axis=-1) for those in qualify], acted


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
    total = len(pairs.own)
    size = min(max(anchors[0], 1 << (total - 1).bit_length()), anchors[1])
    parts = [_nearest(_anchors(rule, pairs, start, (size,)), columns) for start in range(0, total, size)]
    whole = [np.concatenate([*map(ops.convert_to_numpy, arrays)])[:total] for arrays in zip(*parts, strict=True)]
    top, row, guarded = whole
    empty = row == NO_ROW
    similarity = np.where(empty, -np.inf, top / UNIT).astype(np.float32)
    return Found(similarity=similarity, row=np.where(empty, NONE, row.astype(np.int64)), guarded=guarded)


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
    found, key = Found.nothing(pairs), rule.key("negative")
    positive, first = slots_to_fill(pairs)
    for start in range(0, len(pairs.own), LANES * ANCHOR_BLOCK):
        cut = slice(start, start + LANES * ANCHOR_BLOCK)
        anchors, rows = _anchors(rule, pairs, start, (LANES, ANCHOR_BLOCK)), pairs.anchors.row[cut]
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
            counts, acted = _count(anchors, here)
            count = np.stack([_lines(of_slot, len(rows)) for of_slot in counts], axis=1)
            found.guarded[cut] |= _lines(acted, len(rows)) & active[:, None]
            wanted = (found.row[cut] == NONE) & active[:, None]
            group, which = _draw(key, rows, positive[cut], numbers[lane], count, wanted)
            if (group >= 0).any():
                padded = (_padded(array, LANES * ANCHOR_BLOCK) for array in (np.maximum(group, 0), which))
                places = (array.reshape(LANES, ANCHOR_BLOCK, -1) for array in padded)
                units, row = (_lines(array, len(rows)) for array in _pick(anchors, here, *places))
                found.similarity[cut] = np.where(group >= 0, units / UNIT, found.similarity[cut])
                found.row[cut] = np.where(group >= 0, row, found.row[cut])
    return found


def _lines(of_lanes: Any, count: int) -> np.ndarray:
    """[lanes, A, ...] as [count, ...], on the host."""
    array: np.ndarray = ops.convert_to_numpy(of_lanes)
    return array.reshape(-1, *array.shape[2:])[:count]
