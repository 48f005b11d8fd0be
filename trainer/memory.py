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

CLASSMATES = 16  # of each class in a batch, where the rows of the memory are drawn


class Memory:
    """For the rows of a batch, what they are compared with: all rows of the round, or as many as `most` of them.

    A step's own embeddings take the place of the remembered ones of its rows, so that they age slower than the round.
    Of a round with more rows each batch draws its own: CLASSMATES of each of its classes, so that every row finds
    positives, and the others uniformly. A batch of the same rows draws the same.

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
        codes = {"first_rows": split.first_rows, "content": block.content, "group": block.group}
        self._codes = {name: tf.Variable(of, trainable=False) for name, of in codes.items() if of is not None}

    def of_batch(self, row: Any) -> dict[str, Any]:
        """What a step needs of a batch for `compared` and `renew`, in the graph of its input. row: int64 [r], of the
        corpus."""
        if isinstance(self._split, Part):  # they are numbered as in the memory then
            row = tf.searchsorted(self._split.numbers, row, out_type=tf.int64)
        return {"row": row} if self.count == self.rows else {"row": row, "memory_row": self._drawn(row)}

    def compared(self, batch: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
        """In a step's graph: the embeddings that a batch is compared with, [n, dim]; which of these are positives, and
        which are negatives, of each of the batch's rows, bool [r, n]; and which of these are each other's positives.

        As in mining: copies and rows of one group are not each other's negatives, and copies no positives.
        """
        row, drawn = batch["row"], batch.get("memory_row")
        embedding = self.embedding.value() if drawn is None else tf.gather(self.embedding, drawn)
        positive, negative = self._kinds(row, tf.range(self.rows, dtype=tf.int64) if drawn is None else drawn)
        return embedding, positive, negative, self._kinds(row, row)[0]

    def renew(self, strategy: Any, batches: Any, embeddings: Any) -> None:
        """In a step's graph: takes up what it made of its batches' rows, float32 [r, dim] on each device."""
        row, made = (tf.concat(strategy.experimental_local_results(of), axis=0) for of in (batches["row"], embeddings))
        row, which = tf.unique(row)  # of a row that is there twice the first: a GPU would take either
        first = tf.math.unsorted_segment_min(tf.range(tf.size(which)), which, tf.size(row))

        def take_up(held: Any, row: Any, made: Any) -> Any:
            return held.scatter_nd_update(row[:, None], made)

        made = tf.cast(tf.gather(made, first), tf.float32)
        strategy.extended.update(self.embedding, take_up, args=(row, made))

    def _kinds(self, one: Any, other: Any) -> tuple[Any, Any]:
        """Which rows of `other` are positives, and which negatives, of each of `one`: bool [n of one, n of other]."""

        def same(code: Any) -> Any:
            return code(one)[:, None] == code(other)[None, :]

        def of(name: str) -> Any:
            return lambda row: tf.gather(self._codes[name], row)

        same_label = same(lambda row: _class_of(self._codes["first_rows"].value(), row))
        copy = same(of("content")) if "content" in self._codes else same(lambda row: row)
        negative = ~(same_label | copy)
        if "group" in self._codes:
            negative &= ~(same(of("group")) & (of("group")(one) >= 0)[:, None])
        return same_label & ~copy, negative

    def _drawn(self, row: Any) -> Any:
        """int64 [count], different rows."""
        draw, first_rows = tf.stack([self.seed, tf.reduce_sum(row)]), tf.constant(self._first_rows)
        own = tf.sort(tf.unique(_class_of(first_rows, row))[0])
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


def _class_of(first_rows: Any, row: Any) -> Any:
    return tf.searchsorted(first_rows, row, "right", tf.int64) - 1
