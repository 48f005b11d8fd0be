"""The embeddings that a round was mined with, as further positives and negatives of each training step.

A batch meets a hundred rows; with these it meets the corpus, at no image pass. Wang et al., Cross-Batch Memory for
Embedding Learning (https://arxiv.org/abs/1912.06798), keep the embeddings of past batches for it; here the mined round
has all of them, and past batches renew them.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Split
from pipeline.embedding.store import EmbeddingStore
from pipeline.errors import InputError
from pipeline.triplets.rows import Block

CLASSMATES = 16  # of each class in a batch, where the rows of the memory are drawn


class Memory:
    """For the rows of a batch, what they are compared with: all rows of the round, or as many as `most` of them.

    A step's own embeddings take the place of the remembered ones of its rows, so that they age slower than the round.
    Of a round with more rows each batch draws its own: CLASSMATES of each of its classes, so that every row finds
    positives, and the others uniformly. A batch of the same rows draws the same.

    embedding: float32 [rows, dim], all of the train split's. All are held, however few a batch is compared with.
    """

    def __init__(self, store: EmbeddingStore, most: int, seed: int):
        self.split, self.seed, self.count = store.split, seed, min(most, store.split.rows)
        for shard in range(len(store.split.shards)):
            if not store.has(shard):
                path = store.path(shard)
                what = "is not what was mined with" if path.exists() else "is missing"
                raise InputError(
                    f"{path} {what}, and --memory_rows reads it. Remove the round's triplets and mine it again, or "
                    f"train with --memory_rows 0."
                )
        block = store.block(np.arange(store.split.rows))
        self.embedding = block.embedding
        self._keys = replace(block, embedding=np.empty((store.split.rows, 0), np.float32))

    def clear(self) -> None:
        """Forgets the rows. TensorFlow never lets go of a numpy_function, nor of this with it."""
        del self.embedding, self._keys

    def of_batch(self, row: Any) -> dict[str, Any]:
        """What a batch needs for `add` and `renew`, in a graph. row: int64 [r], the batch's."""
        dtypes = [tf.int64, tf.bool, tf.bool, tf.bool]
        found = tf.numpy_function(self.__call__, [row], dtypes, stateful=False)
        names = ("memory_row", "memory_positive", "memory_negative", "batch_positive")
        shapes = ((self.count,), (None, self.count), (None, self.count), (None, None))
        masks = {n: tf.ensure_shape(value, shape) for n, value, shape in zip(names, found, shapes, strict=True)}
        return {"row": row, **masks}

    @property
    def spec(self) -> dict[str, Any]:
        """Of what `add` adds."""
        return {"memory": tf.TensorSpec((self.count, self.embedding.shape[1]))}

    def add(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with the embeddings that it is compared with, as they are now."""
        return batch | {"memory": tf.constant(self.embedding[batch["memory_row"].numpy()])}

    def renew(self, batch: dict[str, Any], embeddings: Any) -> None:
        """Takes up what a step made of a batch's rows: a tensor [r, dim]."""
        self.embedding[batch["row"].numpy()] = embeddings.numpy()

    def __call__(self, row: np.ndarray) -> tuple[np.ndarray, ...]:
        """The rows that a batch is compared with, int64 [n]; which of these are positives, and which are negatives, of
        each of the batch's, bool [r, n]; and which rows of the batch are each other's positives, [r, r].

        As in mining: copies and rows of one group are not each other's negatives, and copies no positives.
        """
        memory_row = np.arange(self.count) if self.count == self.split.rows else self._drawn(row)
        batch, memory = self._keys.take(row), self._keys.take(memory_row)
        positive, negative = _kinds(self.split, batch, memory)
        return memory_row, positive, negative, _kinds(self.split, batch, batch)[0]

    def _drawn(self, row: np.ndarray) -> np.ndarray:
        """int64 [count], different rows."""
        rng = np.random.default_rng([self.seed, int(row.sum())])
        own = [
            first + rng.choice(end - first, min(CLASSMATES, end - first), replace=False)
            for first, end in np.unique(self.split.class_ranges(row), axis=0)
        ]
        classmates = np.concatenate(own)[: self.count]
        others = rng.choice(self.split.rows, self.count, replace=False)
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
