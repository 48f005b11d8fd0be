"""The embeddings that a round was mined with, as further positives and negatives of each training step.

A batch meets a hundred rows; with these it meets the corpus, at no image pass. Wang et al., Cross-Batch Memory for
Embedding Learning (https://arxiv.org/abs/1912.06798), keep the embeddings of past batches for it; here the mined round
has all of them, of one checkpoint.
"""

from typing import Any

import numpy as np

from pipeline.pool import Pool
from pipeline.records import InputError, Split, import_tensorflow
from pipeline.selection import Block

tf = import_tensorflow()

CLASSMATES = 16  # of each class in a batch, where the stored rows are drawn


class StoredRows:
    """For the rows of a batch, what they are compared with: the round's stored rows, or as many as `most` of them.

    Of a larger round each batch draws its own: CLASSMATES of each of its classes, so that every row finds positives,
    and the others uniformly. A batch of the same rows draws the same.
    """

    def __init__(self, pool: Pool, most: int, seed: int):
        self.pool, self.seed, self.count = pool, seed, min(most, pool.rows)
        for number in range(len(pool.split.shards)):
            path = pool.embedding_path(number)
            if not pool.is_embedded(number):
                what = "is not what was mined with" if path.exists() else "is missing"
                raise InputError(
                    f"{path} {what}, and --stored_rows reads it. Remove the round's triplets and mine it again, or "
                    f"train with --stored_rows 0."
                )
        self.dim = int(pool.embeddings(pool.row(np.arange(1))).shape[1])
        self._all = pool.block(pool.row(np.arange(pool.rows))) if self.count == pool.rows else None

    def clear(self) -> None:
        """Forgets the embeddings. TensorFlow never lets go of a numpy_function, nor of this with it."""
        self._all = None

    def of_batch(self, row: Any, length: Any) -> dict[str, Any]:
        """The arguments of `losses.stored_rows_loss` but the first, in a graph.

        row: int64 [r], the batch's; length: to how many it is padded, with rows that have neither positives nor
        negatives.
        """
        dtypes = [tf.float32, tf.bool, tf.bool, tf.bool]
        stored, *masks = tf.numpy_function(self.__call__, [row], dtypes, stateful=False)
        fixed = length if isinstance(length, int) else None
        more = length - tf.shape(row)[0]
        widths = {"stored_positive": self.count, "stored_negative": self.count, "batch_positive": fixed}
        batch = {"stored": tf.ensure_shape(stored, (self.count, self.dim))}
        for (name, width), mask in zip(widths.items(), masks, strict=True):
            mask = tf.pad(mask, [[0, more], [0, more if name == "batch_positive" else 0]])
            batch[name] = tf.ensure_shape(mask, (fixed, width))
        return batch

    def __call__(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The stored rows' embeddings, float32 [n, dim]; which of them are positives, and which are negatives, of each
        of the batch's rows int64 [r]: bool [r, n]; and which rows of the batch are each other's positives, [r, r].

        As in mining: copies and rows of one group are not each other's negatives, and copies no positives.
        """
        there = self._all or self.pool.block(self._drawn(row))
        batch = self.pool.block(row)
        positive, negative = _kinds(self.pool.split, batch, there)
        return there.embedding, positive, negative, _kinds(self.pool.split, batch, batch)[0]

    def _drawn(self, row: np.ndarray) -> np.ndarray:
        """int64 [count], different rows."""
        rng = np.random.default_rng([self.seed, int(row.sum())])
        own = []
        for first, end in np.unique(self.pool.split.class_ranges(row), axis=0):
            first, size = self.pool.position(np.array([first]))[0], end - first
            own.append(first + rng.choice(size, min(CLASSMATES, size), replace=False))
        classmates = np.concatenate(own)[: self.count]
        others = rng.choice(self.pool.rows, self.count, replace=False)
        others = others[~np.isin(others, classmates)][: self.count - len(classmates)]
        return self.pool.row(np.concatenate([classmates, others]))


def _kinds(split: Split, one: Block, other: Block) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `other` are positives, and which are negatives, of each of `one`: bool [n of one, n of other]."""
    same_label = split.class_of(one.row)[:, None] == split.class_of(other.row)
    copy = one.row[:, None] == other.row if one.content is None else one.content[:, None] == other.content
    negative = ~(same_label | copy)
    if one.group is not None:
        negative &= (one.group[:, None] != other.group) | (one.group < 0)[:, None]
    return same_label & ~copy, negative
