"""The embeddings that a round was mined with, as further positives and negatives of each training step.

A batch meets a hundred rows; with these it meets the corpus, at no image pass. Wang et al., Cross-Batch Memory for
Embedding Learning (https://arxiv.org/abs/1912.06798), keep the embeddings of past batches for it; here the mined round
has all of them, and past batches renew them.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.pool import Pool
from pipeline.records import InputError, Split, import_tensorflow
from pipeline.selection import Block

tf = import_tensorflow()

CLASSMATES = 16  # of each class in a batch, where the stored rows are drawn


class StoredRows:
    """For the rows of a batch, what they are compared with: the round's stored rows, or as many as `most` of them.

    A step's own embeddings take the place of the stored ones of its rows, so that they age slower than the round. Of a
    round with more rows each batch draws its own: CLASSMATES of each of its classes, so that every row finds
    positives, and the others uniformly. A batch of the same rows draws the same.

    embedding: float32 [rows, dim], all of the pool's. All are in memory, however few a batch is compared with.
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
        block = pool.block(pool.row(np.arange(pool.rows)))
        self.embedding = block.embedding
        self._keys = replace(block, embedding=np.empty((pool.rows, 0), np.float32))

    def clear(self) -> None:
        """Forgets the rows. TensorFlow never lets go of a numpy_function, nor of this with it."""
        del self.embedding, self._keys

    def of_batch(self, row: Any, length: Any) -> dict[str, Any]:
        """What a batch needs for `add` and `renew`, in a graph.

        row: int64 [r], the batch's; length: to how many it is padded, with rows that have neither positives nor
        negatives.
        """
        dtypes = [tf.int64, tf.int64, tf.bool, tf.bool, tf.bool]
        place, stored_place, *masks = tf.numpy_function(self.__call__, [row], dtypes, stateful=False)
        fixed = length if isinstance(length, int) else None
        more = length - tf.shape(row)[0]
        batch = {
            "place": tf.ensure_shape(tf.pad(place, [[0, more]], constant_values=-1), (fixed,)),
            "stored_place": tf.ensure_shape(stored_place, (self.count,)),
        }
        widths = {"stored_positive": self.count, "stored_negative": self.count, "batch_positive": fixed}
        for (name, width), mask in zip(widths.items(), masks, strict=True):
            mask = tf.pad(mask, [[0, more], [0, more if name == "batch_positive" else 0]])
            batch[name] = tf.ensure_shape(mask, (fixed, width))
        return batch

    @property
    def spec(self) -> dict[str, Any]:
        """Of what `add` adds."""
        return {"stored": tf.TensorSpec((self.count, self.embedding.shape[1]))}

    def add(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with the embeddings that it is compared with, as they are now."""
        return batch | {"stored": tf.constant(self.embedding[batch["stored_place"].numpy()])}

    def renew(self, batch: dict[str, Any], embeddings: Any) -> None:
        """Takes up what a step made of a batch's rows: a tensor [r, dim]."""
        place = batch["place"].numpy()
        self.embedding[place[place >= 0]] = embeddings.numpy()[place >= 0]

    def __call__(self, row: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where the batch's rows, int64 [r], and the rows that they are compared with are among the stored ones, int64
        [r] and [n]; which of these are positives, and which are negatives, of each of the batch's: bool [r, n]; and
        which rows of the batch are each other's positives, [r, r].

        As in mining: copies and rows of one group are not each other's negatives, and copies no positives.
        """
        place = self.pool.position(row)
        stored_place = np.arange(self.count) if self.count == self.pool.rows else self._drawn(row)
        batch, there = self._keys.take(place), self._keys.take(stored_place)
        positive, negative = _kinds(self.pool.split, batch, there)
        return place, stored_place, positive, negative, _kinds(self.pool.split, batch, batch)[0]

    def _drawn(self, row: np.ndarray) -> np.ndarray:
        """int64 [count], different places."""
        rng = np.random.default_rng([self.seed, int(row.sum())])
        own = []
        for first, end in np.unique(self.pool.split.class_ranges(row), axis=0):
            first, size = self.pool.position(np.array([first]))[0], end - first
            own.append(first + rng.choice(size, min(CLASSMATES, size), replace=False))
        classmates = np.concatenate(own)[: self.count]
        others = rng.choice(self.pool.rows, self.count, replace=False)
        others = others[~np.isin(others, classmates)][: self.count - len(classmates)]
        return np.concatenate([classmates, others])


def _kinds(split: Split, one: Block, other: Block) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `other` are positives, and which are negatives, of each of `one`: bool [n of one, n of other]."""
    same_label = split.class_of(one.row)[:, None] == split.class_of(other.row)
    copy = one.row[:, None] == other.row if one.content is None else one.content[:, None] == other.content
    negative = ~(same_label | copy)
    if one.group is not None:
        negative &= (one.group[:, None] != other.group) | (one.group < 0)[:, None]
    return same_label & ~copy, negative
