"""Rounding to the grid: distances stay right, whatever the vectors are, and are never negative."""

import numpy as np
import pytest

from pipeline.triplets.rows import GRID, to_grid

RNG = np.random.default_rng(0)


def digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().data[:300]


def binary(rows: int, dim: int) -> np.ndarray:
    """Each row with another number of ones."""
    return (RNG.random((rows, dim)) < RNG.uniform(0.01, 0.8, (rows, 1))).astype(float)


KINDS = {
    "pixels of digits": digits,
    "pixels, 784": lambda: np.clip(RNG.normal(0.3, 0.3, (200, 784)), 0, 1),
    "ink on paper, 4,096": lambda: (RNG.random((100, 4096)) < 0.9) * 255.0,
    "one-hot": lambda: np.eye(200),
    "bags of words": lambda: binary(200, 2000),
    "TF-IDF": lambda: binary(200, 2000) * RNG.lognormal(0, 1, 2000),
    "64": lambda: RNG.standard_normal((200, 64)),
    "256": lambda: RNG.standard_normal((200, 256)),
    "1,024": lambda: RNG.standard_normal((200, 1024)),
    "4,096": lambda: RNG.standard_normal((200, 4096)),
    "near duplicates": lambda: RNG.standard_normal((1, 768)) + 1e-3 * RNG.standard_normal((200, 768)),
    "a few large coordinates": lambda: RNG.standard_normal((200, 512)) ** 5,
}


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_those_of_the_vectors(kind):
    exact = np.array(KINDS[kind](), np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    stored = to_grid(exact.astype(np.float32))
    np.testing.assert_array_equal(stored * GRID, np.rint(stored * GRID))
    similarity = stored.astype(np.float64) @ stored.T.astype(np.float64)
    assert (2 - 2 * similarity).min() >= 0
    assert np.abs(similarity - exact @ exact.T).max() <= 0.001


def test_what_is_on_the_grid_stays_as_it_is():
    stored = to_grid(np.array([[0.5, -0.5, 0.5, -0.5], [1, 0, 0, 0]], np.float32))
    np.testing.assert_array_equal(stored, [[0.5, -0.5, 0.5, -0.5], [1, 0, 0, 0]])
    np.testing.assert_array_equal(to_grid(stored), stored)
