"""The embeddings of the last rows that the warm-up trained on, as further rows of each of its batches.

Wang et al., Cross-Batch Memory for Embedding Learning (https://arxiv.org/abs/1912.06798). It costs no image pass and
needs no mining: it is what a mined memory (trainer/memory.py) is to be compared with.
"""

from typing import Any

import tensorflow as tf


class PastRows:
    """A queue of `rows` embeddings, in variables: the oldest make room. As the paper has it, a row that comes again
    meets its own former embedding as a positive.

    embedding: float32 [rows, dim]. label: int64 [rows], -1 where nothing is yet.
    """

    def __init__(self, rows: int, dim: int):
        self.embedding = tf.Variable(tf.zeros([rows, dim]), trainable=False)
        self.label = tf.Variable(-tf.ones([rows], tf.int64), trainable=False)
        self._next = tf.Variable(tf.zeros([], tf.int64), trainable=False)
        self.variables = (self.embedding, self.label, self._next)

    def push(self, embeddings: Any, labels: Any) -> None:
        """Takes up a batch, in a graph too: float32 [n, dim] and int64 [n], n no more than `rows`."""
        count = tf.shape(labels, tf.int64)[0]
        places = (self._next + tf.range(count)) % tf.shape(self.label, tf.int64)[0]
        self.embedding.scatter_nd_update(places[:, None], tf.cast(embeddings, tf.float32))
        self.label.scatter_nd_update(places[:, None], labels)
        self._next.assign_add(count)
