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


def _mean(values: Any, counted: Any) -> Any:
    """The mean of values [t] over those with weight 1 in `counted`; 0 if there is none."""
    return tf.math.divide_no_nan(tf.reduce_sum(values * counted), tf.reduce_sum(counted))


def triplet_loss(d_ap: Any, d_an: Any, margin: float, valid: Any = None) -> Any:
    """mean(max(0, margin + d_ap - d_an)), FaceNet equation 3 as a mean (https://arxiv.org/abs/1503.03832).

    valid: float32 [t], here and below 0 for triplets that do not count, such as padding; None: all count.
    """
    losses = tf.maximum(0.0, margin + d_ap - d_an)
    return _mean(losses, tf.ones_like(losses) if valid is None else valid)


def active_triplet_loss(d_ap: Any, d_an: Any, margin: float, valid: Any = None) -> Any:
    """The sum of max(0, margin + d_ap - d_an) over the number of triplets where it is above 0.

    The mean over active triplets, as OpenFace takes it (https://github.com/cmusatyalab/openface, training/train.lua).
    """
    losses = tf.maximum(0.0, margin + d_ap - d_an)
    active = tf.cast(losses > 0, tf.float32)
    return _mean(losses, active if valid is None else active * valid)


def contrastive_loss(d_ap: Any, d_an: Any, margin: float, valid: Any = None) -> Any:
    """mean(d_ap / 2 + max(0, margin - sqrt(d_an))^2 / 2) over the two pairs that each triplet implies.

    Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, equation 4, CVPR 2006. Its
    margin is on plain distances, while d_ap and d_an are squared. The gradient at d_an = 0 is finite.
    """
    apart = tf.where(
        d_an > 0, d_an, 1.0
    )  # where on both sides: the gradient of the branch not taken must be finite too
    distance = tf.where(d_an > 0, tf.sqrt(apart), 0.0)
    losses = d_ap / 2 + tf.maximum(0.0, margin - distance) ** 2 / 2
    return _mean(losses, tf.ones_like(losses) if valid is None else valid)


LOSSES = {"triplet": triplet_loss, "active-triplet": active_triplet_loss, "contrastive": contrastive_loss}


STORED_TEMPERATURE = 0.07  # of cosines; on Omniglot .05, .07 and .1 did alike


def stored_rows_loss(
    embeddings: Any, stored: Any, stored_positive: Any, stored_negative: Any, batch_positive: Any
) -> Any:
    """For an anchor and each of its positives, log(1 + sum over its stored negatives of exp((a.n - a.p) / t)).

    The (N+1)-tuplet loss (Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, equation 6, NIPS
    2016), a smooth form of the triplet loss in which each pair meets all its negatives, the nearest most. Positives are
    stored rows and rows of the batch; t is STORED_TEMPERATURE. No gradient goes to stored rows. The mean over an
    anchor's positives, then over the anchors that have positives and negatives; 0 if there is none.

    Args:
      embeddings: float32 [r, dim]; stored: float32 [n, dim], L2-normalised.
      stored_positive, stored_negative: bool [r, n]; batch_positive: bool [r, r].
    """
    embeddings = tf.cast(embeddings, tf.float32)
    to_stored = tf.matmul(embeddings, stored, transpose_b=True) / STORED_TEMPERATURE
    in_batch = tf.matmul(embeddings, embeddings, transpose_b=True) / STORED_TEMPERATURE
    negatives = tf.reduce_logsumexp(tf.where(stored_negative, to_stored, -1e9), axis=1, keepdims=True)
    total, count = 0.0, 0.0
    for similarity, positive in ((to_stored, stored_positive), (in_batch, batch_positive)):
        weight = tf.cast(positive, tf.float32)
        total += tf.reduce_sum(tf.nn.softplus(negatives - similarity) * weight, axis=1)
        count += tf.reduce_sum(weight, axis=1)
    counted = tf.reduce_any(stored_negative, axis=1) & (count > 0)
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
