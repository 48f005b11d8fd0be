"""Losses on L2-normalised embeddings. Distances are squared Euclidean, as in mining."""

from typing import Any

from pipeline.records import import_tensorflow

tf = import_tensorflow()


def triplet_distances(embeddings: Any, triplets: Any) -> tuple[Any, Any]:
    """d_ap and d_an, float32 [t], of triplets int32 [t, 3], rows of embeddings float32 [n, dim].

    Each row is embedded once and gathered, however many triplets it is in.
    """
    embeddings = tf.cast(embeddings, tf.float32)
    anchor, positive, negative = (tf.gather(embeddings, triplets[:, k]) for k in range(3))
    return (
        tf.reduce_sum(tf.math.squared_difference(anchor, positive), axis=1),
        tf.reduce_sum(tf.math.squared_difference(anchor, negative), axis=1),
    )


def triplet_loss(d_ap: Any, d_an: Any, margin: float) -> Any:
    """mean(max(0, margin + d_ap - d_an)), FaceNet equation 3 as a mean (https://arxiv.org/abs/1503.03832)."""
    return tf.reduce_mean(tf.maximum(0.0, margin + d_ap - d_an))


def triplet_semihard_loss(labels: Any, embeddings: Any, margin: float) -> Any:
    """In-batch semi-hard triplet loss, with the meaning of TensorFlow Addons' `triplet_semihard_loss`.

    For each ordered pair of a label, the negative is the nearest row of another label with d_an > d_ap, else
    the farthest one; the loss is the mean of max(0, margin + d_ap - d_an) over all pairs. A batch without
    pairs, or with one label only, has loss 0.

    Args:
      labels: int [n]. embeddings: float32 [n, dim], L2-normalised.
    Returns:
      A float32 scalar. Memory O(n^2 * rows per label).
    """
    embeddings = tf.cast(embeddings, tf.float32)
    distance = tf.maximum(0.0, 2.0 - 2.0 * tf.matmul(embeddings, embeddings, transpose_b=True))
    same = labels[:, None] == labels[None, :]
    pairs = tf.where(same & ~tf.eye(tf.size(labels), dtype=tf.bool))  # [p, 2]
    d_ap = tf.gather_nd(distance, pairs)[:, None]
    d_an = tf.gather(distance, pairs[:, 0])  # [p, n]
    other = ~tf.gather(same, pairs[:, 0])
    beyond = other & (d_an > d_ap)
    nearest = tf.reduce_min(tf.where(beyond, d_an, 8.0), axis=1)
    farthest = tf.reduce_max(tf.where(other, d_an, 0.0), axis=1)
    chosen = tf.where(tf.reduce_any(beyond, axis=1), nearest, farthest)
    losses = tf.maximum(0.0, margin + d_ap[:, 0] - chosen) * tf.cast(tf.reduce_any(other, axis=1), tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(tf.shape(losses)[0], tf.float32))
