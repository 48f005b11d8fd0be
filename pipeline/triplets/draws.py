"""Draws: a hash of (seed, round, purpose, rows), so that no draw depends on how the work is cut."""

import hashlib

import numpy as np

from pipeline.triplets.kernels import compiled


def draw_key(seed: int, round: int, purpose: str) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}/{round}/{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


@compiled
def mix(h, value):  # one round of splitmix64 (Steele et al., https://doi.org/10.1145/2660193.2660195)
    z = (h ^ np.uint64(value)) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def below(h, n):
    """A hash as a whole number in [0, n), uniform to n / 2^53."""
    return np.int64(np.float64(h >> np.uint64(11)) * (1.0 / 9007199254740992.0) * n)


@compiled
def hashes(key, first, second):
    """uint64 [n]: a hash for each (key, first[i], second[i]), both int64 [n]."""
    out = np.empty(len(first), np.uint64)
    for i in range(len(first)):
        out[i] = mix(mix(key, first[i]), second[i])
    return out


def row_hashes(key: np.uint64, rows: np.ndarray) -> np.ndarray:
    """uint64 [n]: a hash for each of the int64 [n] rows."""
    return hashes(key, rows, np.zeros_like(rows))
