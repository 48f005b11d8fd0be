"""Losses on L2-normalised embeddings: of triplets, of a batch against the memory, of in-batch triplets.

Distances are squared Euclidean, as in mining.
"""

from typing import Any

import tensorflow as tf


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


def _mean(values: Any, counted: Any) -> Any:
    """The mean of values [t] over those with weight 1 in `counted`; 0 if there is none."""
    return tf.math.divide_no_nan(tf.reduce_sum(values * counted), tf.reduce_sum(counted))


def triplet_loss(d_ap: Any, d_an: Any, margin: float) -> Any:
    """mean(max(0, margin + d_ap - d_an)), FaceNet equation 3 as a mean (https://arxiv.org/abs/1503.03832)."""
    losses = tf.maximum(0.0, margin + d_ap - d_an)
    return _mean(losses, tf.ones_like(losses))


def active_triplet_loss(d_ap: Any, d_an: Any, margin: float) -> Any:
    """The sum of max(0, margin + d_ap - d_an) over the number of triplets where it is above 0.

    The mean over active triplets, as OpenFace takes it (https://github.com/cmusatyalab/openface, training/train.lua).
    """
    losses = tf.maximum(0.0, margin + d_ap - d_an)
    return _mean(losses, tf.cast(losses > 0, tf.float32))


def contrastive_loss(d_ap: Any, d_an: Any, margin: float) -> Any:
    """mean(d_ap / 2 + max(0, margin - sqrt(d_an))^2 / 2) over the two pairs that each triplet implies.

    Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, equation 4, CVPR 2006. Its
    margin is on plain distances, while d_ap and d_an are squared. The gradient at d_an = 0 is finite.
    """
    # `where` on both sides: the gradient of the branch not taken must be finite too.
    apart = tf.where(d_an > 0, d_an, 1.0)
    distance = tf.where(d_an > 0, tf.sqrt(apart), 0.0)
    losses = d_ap / 2 + tf.maximum(0.0, margin - distance) ** 2 / 2
    return _mean(losses, tf.ones_like(losses))


LOSSES = {"triplet": triplet_loss, "active-triplet": active_triplet_loss, "contrastive": contrastive_loss}


MEMORY_TEMPERATURE = 0.07  # of cosines; on Omniglot .05, .07 and .1 did alike


def memory_loss(embeddings: Any, memory: Any, memory_positive: Any, memory_negative: Any, batch_positive: Any) -> Any:
    """For an anchor and each of its positives, log(1 + sum over its negatives in the memory of exp((a.n - a.p) / t)).

    The (N+1)-tuplet loss (Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, equation 6, NIPS
    2016), a smooth form of the triplet loss in which each pair meets all its negatives, the nearest most. Positives are
    rows of the memory and of the batch; t is MEMORY_TEMPERATURE. No gradient goes to the memory. The mean over an
    anchor's positives, then over the anchors that have positives and negatives; 0 if there is none.

    Args:
      embeddings: float32 [r, dim]; memory: float32 [n, dim], L2-normalised.
      memory_positive, memory_negative: bool [r, n]; batch_positive: bool [r, r].
    """
    embeddings = tf.cast(embeddings, tf.float32)
    to_memory = tf.matmul(embeddings, memory, transpose_b=True) / MEMORY_TEMPERATURE
    in_batch = tf.matmul(embeddings, embeddings, transpose_b=True) / MEMORY_TEMPERATURE
    negatives = tf.reduce_logsumexp(tf.where(memory_negative, to_memory, -1e9), axis=1, keepdims=True)
    total, count = 0.0, 0.0
    for similarity, positive in ((to_memory, memory_positive), (in_batch, batch_positive)):
        weight = tf.cast(positive, tf.float32)
        total += tf.reduce_sum(tf.nn.softplus(negatives - similarity) * weight, axis=1)
        count += tf.reduce_sum(weight, axis=1)
    counted = tf.reduce_any(memory_negative, axis=1) & (count > 0)
    return _mean(tf.math.divide_no_nan(total, count), tf.cast(counted, tf.float32))


def triplet_semihard_loss(labels: Any, embeddings: Any, margin: float = 1.0) -> Any:
    """In-batch semi-hard triplet loss, with the meaning of TensorFlow Addons' `triplet_semihard_loss`.

    For each ordered pair of a label, the negative is the nearest row of another label with d_an > d_ap, else
    the farthest one; the loss is the mean of max(0, margin + d_ap - d_an) over all pairs. A batch without
    pairs, or with one label only, has loss 0.

    Args:
      labels: int [n]. embeddings: float32 [n, dim], L2-normalised.
    Returns:
      A float32 scalar. Memory O(n^2): each row's negatives are sorted once, and each of its positives finds its
      place among them.
    """
    embeddings = tf.cast(embeddings, tf.float32)
    n = tf.shape(embeddings)[0]
    distance = tf.maximum(0.0, 2.0 - 2.0 * tf.matmul(embeddings, embeddings, transpose_b=True))
    same = labels[:, None] == labels[None, :]
    pair = same & ~tf.eye(n, dtype=tf.bool)
    far = 8.0  # more than any distance: where a row has no such negative
    ascending = tf.sort(tf.where(same, far, distance), axis=1)  # [n, n], each row's negatives first
    beyond = tf.searchsorted(ascending, distance, side="right")  # [n, n], the first negative farther than each row
    nearest = tf.gather(ascending, tf.minimum(beyond, n - 1), batch_dims=1)
    farthest = tf.reduce_max(tf.where(same, -1.0, distance), axis=1, keepdims=True)
    chosen = tf.where((beyond < n) & (nearest < far), nearest, farthest)
    counted = tf.cast(pair, tf.float32)
    has_negative = tf.cast(~tf.reduce_all(same, axis=1, keepdims=True), tf.float32)
    return _mean(tf.maximum(0.0, margin + distance - chosen) * has_negative, counted)
