"""The grid; columns of triplets and of blocks."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from blocks import grid_vectors

from pipeline.triplets.rows import GRID, Block, Triplets


def test_grid_distances_are_exact_in_float32():
    vectors = grid_vectors(np.random.default_rng(0), 500, 256)
    assert np.abs(vectors * GRID - np.rint(vectors * GRID)).max() == 0
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    for tile in (1, 3, 100, 500):
        for start in range(0, 500, tile):
            np.testing.assert_array_equal(vectors[start : start + tile] @ vectors.T, exact[start : start + tile])


def test_triplets_concatenate_and_take():
    none = Triplets.concatenate([Triplets.none(), Triplets.none()])
    assert len(none) == 0 and none.d_ap.dtype == np.float32
    rows, kind, distance = np.arange(3), np.array([0, 1, 0], np.int8), np.array([0.5, 0.25, 1], np.float32)
    some = Triplets(anchor=rows, positive=rows + 3, negative=rows + 6, kind=kind, d_ap=distance, d_an=2 * distance)
    two = Triplets.concatenate([none, some, some.take(slice(1, 2))]).take(np.array([3, 0]))
    assert [column.tolist() for column in vars(two).values()] == [[1, 0], [4, 3], [7, 6], [1, 0], [0.25, 0.5], [0.5, 1]]
    assert [column.dtype for column in vars(two).values()] == [column.dtype for column in vars(none).values()]
    with pytest.raises(FrozenInstanceError):
        some.anchor = rows


def test_blocks_concatenate_and_take():
    """Codes are missing where none of the parts has any."""
    rng = np.random.default_rng(0)
    plain = Block(row=np.arange(5), embedding=grid_vectors(rng, 5, 3))
    whole = Block.concatenate([plain.take(slice(2, 5)), plain.take(np.array([1, 0]))])
    np.testing.assert_array_equal(whole.embedding, plain.embedding[[2, 3, 4, 1, 0]])
    assert whole.row.tolist() == [2, 3, 4, 1, 0] and whole.content is None and whole.group is None
    coded = replace(plain, content=np.arange(5) // 2, group=np.array([-1, 0, 0, 1, -1]))
    again = Block.concatenate([coded.take(slice(2, 5)), coded.take(slice(0, 2))])
    assert again.content.tolist() == [1, 1, 2, 0, 0] and again.group.tolist() == [0, 1, -1, -1, 0]
