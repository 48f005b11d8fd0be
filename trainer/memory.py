"""The embeddings that a round was mined with, as further positives and negatives of each training step.

A batch meets a hundred rows; with these it meets the corpus, at no image pass. Wang et al., Cross-Batch Memory for
Embedding Learning (https://arxiv.org/abs/1912.06798), keep the embeddings of past batches for it; here the mined round
has all of them, and past batches renew them.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Part
from pipeline.embedding.store import EmbeddingStore
from pipeline.errors import InputError
from trainer.kinds import Kinds, class_of

CLASSMATES = 16  # of each class in a batch, where the rows of the memory are drawn


class Memory:
    """For the rows of a batch, what they are compared with: all rows of the round, or as many as `most` of them.

    A step's own embeddings take the place of the remembered ones of its rows, so that they age slower than the round.
    Of a round with more rows each batch draws its own: CLASSMATES of each of its classes, so that every row finds
    positives, and the others uniformly. A batch of the same rows draws the same.

    kinds: which rows are positives and which negatives of which, by their numbers in the memory.
    embedding: a variable where the step runs, float32 [rows, dim], of all rows that the round embedded. All are held,
    however few a batch is compared with.
    """

    def __init__(self, store: EmbeddingStore, most: int, seed: int):
        split = store.split
        self.seed, self.rows, self.count = seed, split.rows, min(most, split.rows)
        for shard in range(store.files):
            if not store.has(shard):
                path = store.path(shard)
                what = "is not what was mined with" if path.exists() else "is missing"
                raise InputError(
                    f"{path} {what}, and --memory_rows reads it. Remove the round's triplets and mine it again, or "
                    f"train with --memory_rows 0."
                )
        block = store.block(np.arange(split.rows))
        self.embedding = tf.Variable(block.embedding, trainable=False)
        self._split, self._first_rows = split, split.first_rows
        self.kinds = Kinds(split.first_rows, block.content, block.group)

    def of_batch(self, row: Any) -> dict[str, Any]:
        """What a step needs of a batch for `compared` and `renew`, in the graph of its input. row: int64 [r], of the
        corpus."""
        if isinstance(self._split, Part):  # they are numbered as in the memory then
            row = tf.searchsorted(self._split.numbers, row, out_type=tf.int64)
        return {"row": row} if self.count == self.rows else {"row": row, "memory_row": self._drawn(row)}

    def compared(self, batch: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
        """In a step's graph: the embeddings that a batch is compared with, [n, dim]; which of these are positives, and
        which are negatives, of each of the batch's rows, bool [r, n]; and which of these are each other's positives.
        """
        row, drawn = batch["row"], batch.get("memory_row")
        embedding = self.embedding.value() if drawn is None else tf.gather(self.embedding, drawn)
        positive, negative = self.kinds(row, tf.range(self.rows, dtype=tf.int64) if drawn is None else drawn)
        return embedding, positive, negative, self.kinds(row, row)[0]

    def renew(self, strategy: Any, batches: Any, embeddings: Any) -> None:
        """In a step's graph: takes up what it made of its batches' rows, float32 [r, dim] on each device."""
        row, made = (tf.concat(strategy.experimental_local_results(of), axis=0) for of in (batches["row"], embeddings))
        row, which = tf.unique(row)  # of a row that is there twice the first: a GPU would take either
        first = tf.math.unsorted_segment_min(tf.range(tf.size(which)), which, tf.size(row))

        def take_up(held: Any, row: Any, made: Any) -> Any:
            return held.scatter_nd_update(row[:, None], made)

        made = tf.cast(tf.gather(made, first), tf.float32)
        strategy.extended.update(self.embedding, take_up, args=(row, made))

    def _drawn(self, row: Any) -> Any:
        """int64 [count], different rows."""
        draw, first_rows = tf.stack([self.seed, tf.reduce_sum(row)]), tf.constant(self._first_rows)
        own = tf.sort(tf.unique(class_of(first_rows, row))[0])
        first = tf.gather(first_rows, own)[:, None]
        size = tf.gather(first_rows, own + 1)[:, None] - first
        # Of a class every so many rows, from a random one on: different ones, however small or large it is.
        start, step = tf.unstack(tf.random.stateless_uniform([2, tf.size(own), 1], draw, 0, 2**62, tf.int64))
        number = tf.range(CLASSMATES, dtype=tf.int64)
        step = 1 + step % tf.maximum(size // CLASSMATES, 1)
        classmates = tf.boolean_mask(first + (start % size + number * step) % size, number < size)
        classmates = tf.sort(classmates[: self.count])
        shuffled, last = tf.random.experimental.index_shuffle, tf.constant(self.rows - 1, tf.int64)
        others = shuffled(tf.range(self.count, dtype=tf.int64), draw, last)
        place = tf.minimum(tf.searchsorted(classmates, others), tf.size(classmates) - 1)
        others = others[tf.gather(classmates, place) != others]
        return tf.ensure_shape(tf.concat([classmates, others], axis=0)[: self.count], [self.count])
