"""Losses on L2-normalised embeddings, for `model.compile` and for the trainer's own step.

Of triplets, of a batch against a memory, of a batch against itself. Distances are squared Euclidean, as in mining. A
batch without triplets, pairs or positives has loss 0. A loss of mined triplets for `trainer.train --loss` goes into
LOSSES and into `TrainOptions.loss`; one for `trainer.warmup --loss` into IN_BATCH and into `WarmupOptions.loss`.
"""

from typing import Any

import keras
from keras import ops

from pipeline.errors import InputError, above_zero
from trainer.options import MEMORY_TEMPERATURE


def triplet_distances(embeddings: Any, triplets: Any) -> tuple[Any, Any]:
    """d_ap and d_an, float32 [t], of triplets int32 [t, 3], rows of embeddings float32 [n, dim].

    Each row is embedded once and gathered, however many triplets it is in.
    """
    embeddings, triplets = ops.cast(embeddings, "float32"), ops.cast(triplets, "int32")
    anchor, positive, negative = (ops.take(embeddings, triplets[:, k], axis=0) for k in range(3))
    return ops.sum(ops.square(anchor - positive), axis=1), ops.sum(ops.square(anchor - negative), axis=1)


def mean_or_zero(values: Any, counted: Any) -> Any:
    """The mean of values [t] over those with weight 1 in `counted`; 0 if there is none."""
    return ops.divide_no_nan(ops.sum(values * counted), ops.sum(counted))


@keras.saving.register_keras_serializable("triplet_miner")
class TripletLoss(keras.losses.Loss):
    """mean(max(0, margin + d_ap - d_an)), FaceNet equation 3 as a mean (https://arxiv.org/abs/1503.03832).

    y_true: integers [t, 3], the rows of y_pred that are anchor, positive and negative, as `triplet_dataset` gives them.
    y_pred: [n, dim], L2-normalised.

    >>> TripletLoss(margin=1.0)([[0, 1, 2]], [[1.0, 0.0], [1.0, 0.0], [0.8, 0.6]]).numpy().round(4).item()
    0.6
    """

    def __init__(self, margin: float = 0.2, name: str = "triplet_loss", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        above_zero(margin=margin)
        self.margin = margin

    def of_distances(self, d_ap: Any, d_an: Any) -> Any:
        """float32 [t], of distances [t]: each triplet's."""
        return ops.maximum(0.0, self.margin + d_ap - d_an)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if y_true.shape[0] == 0:  # Keras takes no mean of nothing
            return ops.zeros([1])
        return self.of_distances(*triplet_distances(y_pred, y_true))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"margin": self.margin}


@keras.saving.register_keras_serializable("triplet_miner")
class ActiveTripletLoss(TripletLoss):
    """The sum of max(0, margin + d_ap - d_an) over the number of triplets where it is above 0.

    The mean over active triplets, as OpenFace takes it (https://github.com/cmusatyalab/openface, training/train.lua).
    """

    def __init__(self, margin: float = 0.2, name: str = "active_triplet_loss", **kwargs: Any):
        super().__init__(margin, name, **kwargs)

    def of_distances(self, d_ap: Any, d_an: Any) -> Any:
        """float32 [1]: what the mean over the active ones is."""
        losses = super().of_distances(d_ap, d_an)
        return ops.reshape(mean_or_zero(losses, ops.cast(losses > 0, "float32")), [1])


@keras.saving.register_keras_serializable("triplet_miner")
class ContrastiveLoss(TripletLoss):
    """mean(d_ap / 2 + max(0, margin - sqrt(d_an))^2 / 2) over the two pairs that each triplet implies.

    Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, equation 4, CVPR 2006. Its
    margin is on plain distances, while d_ap and d_an are squared. The gradient at d_an = 0 is finite.
    """

    def __init__(self, margin: float = 0.2, name: str = "contrastive_loss", **kwargs: Any):
        super().__init__(margin, name, **kwargs)

    def of_distances(self, d_ap: Any, d_an: Any) -> Any:
        """float32 [t], of distances [t]: each triplet's."""
        # `where` on both sides: the gradient of the branch not taken must be finite too.
        apart = ops.where(d_an > 0, d_an, 1.0)
        distance = ops.where(d_an > 0, ops.sqrt(apart), 0.0)
        return d_ap / 2 + ops.square(ops.maximum(0.0, self.margin - distance)) / 2


LOSSES = {"triplet": TripletLoss, "active-triplet": ActiveTripletLoss, "contrastive": ContrastiveLoss}


def memory_loss(
    embeddings: Any, memory: Any, memory_positive: Any, memory_negative: Any, batch_positive: Any,
    temperature: float = MEMORY_TEMPERATURE,
) -> Any:  # fmt: skip
    """For an anchor and each of its positives, log(1 + sum over its negatives in the memory of exp((a.n - a.p) / t)).

    The (N+1)-tuplet loss (Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, equation 6, NIPS
    2016), a smooth form of the triplet loss in which each pair meets all its negatives, the nearest most. Positives are
    rows of the memory and of the batch. No gradient goes to the memory. The mean over an anchor's positives, then over
    the anchors that have positives and negatives.

    Args:
      embeddings: float32 [r, dim]; memory: float32 [n, dim], L2-normalised.
      memory_positive, memory_negative: bool [r, n]; batch_positive: bool [r, r].
    """
    positive = ops.concatenate([batch_positive, memory_positive], axis=1)
    negative = ops.concatenate([ops.zeros_like(batch_positive), memory_negative], axis=1)
    return _tuplet_loss(_cosines(embeddings, memory) / temperature, positive, negative)


def _cosines(embeddings: Any, memory: Any) -> Any:
    """Of a batch's rows with one another, and with those of the memory if there is one: float32 [r, r + n].

    In two products: in one of both joined the memory would be copied, and would have a gradient that nobody reads.
    """
    embeddings = ops.cast(embeddings, "float32")
    of_batch = ops.matmul(embeddings, ops.transpose(embeddings))
    if memory is None:
        return of_batch
    return ops.concatenate([of_batch, ops.matmul(embeddings, ops.transpose(memory))], axis=1)


def _tuplet_loss(similarity: Any, positive: Any, negative: Any) -> Any:
    """similarity: float32 [r, m], over the temperature; positive, negative: bool [r, m]."""
    weight = ops.cast(positive, "float32")
    negatives = ops.logsumexp(ops.where(negative, similarity, -1e9), axis=1, keepdims=True)
    total, count = ops.sum(ops.softplus(negatives - similarity) * weight, axis=1), ops.sum(weight, axis=1)
    counted = ops.logical_and(ops.any(negative, axis=1), count > 0)
    return mean_or_zero(ops.divide_no_nan(total, count), ops.cast(counted, "float32"))


class MemoryLoss(keras.losses.Loss):
    """`memory_loss` of a batch against stored embeddings: rows of its label are positives, all others negatives.

    y_true: integers [r], labels; or [r, 2], labels and each row's own place in the memory, -1 for none, so that it is
    not its own positive; all below 2^24, for Keras makes them float32. y_pred: [r, dim], L2-normalised.

    A saved model has no memory in it: `keras.saving.load_model(path, compile=False)`, then compile with a new loss.

    Args:
      memory: float32 [n, dim], L2-normalised. labels: integers [n].
      temperature: of cosines.

    >>> MemoryLoss([[1.0, 0.0], [0.0, 1.0]], [7, 8])([7], [[1.0, 0.0]]).numpy().item() < 1e-5
    True
    """

    def __init__(
        self, memory: Any, labels: Any, temperature: float = MEMORY_TEMPERATURE, name: str = "memory_loss",
        **kwargs: Any,
    ):  # fmt: skip
        super().__init__(name=name, **kwargs)
        above_zero(temperature=temperature)
        self.memory, self.labels = ops.convert_to_tensor(memory, "float32"), ops.convert_to_tensor(labels, "int32")
        self.temperature = temperature
        if self.labels.shape != self.memory.shape[:1]:
            raise InputError(f"expected memory [n, dim] and labels [n]; found {self.memory.shape}, {self.labels.shape}")
        largest = max(int(ops.max(self.labels)), self.labels.shape[0])
        if largest >= 1 << 24:
            raise InputError(f"labels and rows of the memory must be below 2^24; found {largest}. Number them anew.")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true = ops.cast(y_true, "int32")
        has_own = y_true.shape.rank == 2 and y_true.shape[1] == 2
        labels, own = (y_true[:, 0], y_true[:, 1]) if has_own else (ops.reshape(y_true, [-1]), None)
        same = labels[:, None] == self.labels[None, :]
        itself = False if own is None else own[:, None] == ops.arange(self.labels.shape[0], dtype="int32")[None, :]
        n = ops.shape(labels)[0]
        mates = ops.logical_and(labels[:, None] == labels[None, :], ops.logical_not(ops.eye(n, dtype="bool")))
        return memory_loss(
            y_pred, self.memory, ops.logical_and(same, ops.logical_not(itself)), ops.logical_not(same), mates,
            self.temperature,
        )  # fmt: skip


# ---- In-batch: of labels and embeddings alone. ----


def triplet_semihard_loss(
    labels: Any, embeddings: Any, margin: float = 1.0, memory: Any = None, memory_labels: Any = None
) -> Any:
    """In-batch semi-hard triplet loss, with the meaning of TensorFlow Addons' `triplet_semihard_loss`.

    For each ordered pair of a label, the negative is the nearest row of another label with d_an > d_ap, else
    the farthest one; the loss is the mean of max(0, margin + d_ap - d_an) over all pairs.

    Args:
      labels: int [n]. embeddings: float32 [n, dim], L2-normalised.
      memory: float32 [m, dim], further rows that negatives are picked among; no gradient goes there.
      memory_labels: int [m], -1 where the memory is empty.
    Returns:
      A float32 scalar. Memory O(n * (n + m)): each row's negatives are sorted once, and each of its positives finds its
      place among them.
    """
    similarity, positive, negative = _compared(labels, embeddings, memory, memory_labels)
    return _semihard(similarity, positive[:, : ops.shape(embeddings)[0]], negative, margin)


def picked_triplet_loss(embeddings: Any, positive: Any, negative: Any, margin: float) -> Any:
    """`triplet_semihard_loss` where it is said which rows are positives and negatives of which: bool [n, n]."""
    return _semihard(_cosines(embeddings, None), positive, negative, margin)


def _semihard(similarity: Any, positive: Any, negative: Any, margin: float) -> Any:
    """similarity: float32 [n, n + m]; positive: bool [n, n]; negative: bool [n, n + m]."""
    distance, n = ops.maximum(0.0, 2.0 - 2.0 * similarity), ops.shape(positive)[0]
    of_batch = distance[:, :n]
    far = 8.0  # more than any distance: where a row has no such negative
    ascending = ops.sort(ops.where(negative, distance, far), axis=1)  # each row's negatives first

    def first_beyond(row: Any) -> Any:
        negatives, distances = row
        return ops.cast(ops.searchsorted(negatives, distances, side="right"), "int32")

    beyond = ops.vectorized_map(first_beyond, (ascending, of_batch))  # [n, n], the first negative farther than each row
    count = ops.shape(ascending)[1]
    nearest = ops.take_along_axis(ascending, ops.minimum(beyond, count - 1), axis=1)
    farthest = ops.max(ops.where(negative, distance, -1.0), axis=1, keepdims=True)
    chosen = ops.where(ops.logical_and(beyond < count, nearest < far), nearest, farthest)
    has_negative = ops.cast(ops.any(negative, axis=1, keepdims=True), "float32")
    return mean_or_zero(ops.maximum(0.0, margin + of_batch - chosen) * has_negative, ops.cast(positive, "float32"))


def triplet_hard_loss(
    labels: Any, embeddings: Any, margin: float = 1.0, memory: Any = None, memory_labels: Any = None
) -> Any:
    """Batch-hard: the mean of max(0, margin + d_ap - d_an) of each row's farthest positive and nearest negative.

    Hermans, Beyer and Leibe, In Defense of the Triplet Loss for Person Re-Identification, equation 5
    (https://arxiv.org/abs/1703.07737). Over the rows that have both. Arguments as of `triplet_semihard_loss`; a memory
    has positives too.
    """
    similarity, positive, negative = _compared(labels, embeddings, memory, memory_labels)
    distance = ops.maximum(0.0, 2.0 - 2.0 * similarity)
    farthest = ops.max(ops.where(positive, distance, -1.0), axis=1)
    nearest = ops.min(ops.where(negative, distance, 8.0), axis=1)
    counted = ops.cast(ops.logical_and(ops.any(positive, axis=1), ops.any(negative, axis=1)), "float32")
    return mean_or_zero(ops.maximum(0.0, margin + farthest - nearest), counted)


def npair_loss(
    labels: Any, embeddings: Any, temperature: float = MEMORY_TEMPERATURE, memory: Any = None, memory_labels: Any = None
) -> Any:
    """For a row and each of its positives, log(1 + sum over its negatives of exp((a.n - a.p) / t)): see `memory_loss`.

    Arguments as of `triplet_semihard_loss`; a memory has positives too. Positives do not push one another away, as they
    do where a loss of a softmax has them in its denominator (https://arxiv.org/abs/2004.11362, equation 2).
    """
    similarity, positive, negative = _compared(labels, embeddings, memory, memory_labels)
    return _tuplet_loss(similarity / temperature, positive, negative)


def semihard_npair_loss(
    labels: Any, embeddings: Any, margin: float = 1.0, temperature: float = MEMORY_TEMPERATURE, memory: Any = None,
    memory_labels: Any = None,
) -> Any:  # fmt: skip
    """The sum of `triplet_semihard_loss` and `npair_loss`."""
    further = {"memory": memory, "memory_labels": memory_labels}
    triplets = triplet_semihard_loss(labels, embeddings, margin, **further)
    return triplets + npair_loss(labels, embeddings, temperature, **further)


IN_BATCH: dict[str, tuple[Any, tuple[str, ...]]] = {  # with the options that it takes
    "semi-hard": (triplet_semihard_loss, ("margin",)),
    "batch-hard": (triplet_hard_loss, ("margin",)),
    "n-pair": (npair_loss, ("temperature",)),
    "semi-hard+n-pair": (semihard_npair_loss, ("margin", "temperature")),
}


def _compared(labels: Any, embeddings: Any, memory: Any, memory_labels: Any) -> tuple[Any, Any, Any]:
    """Similarities of a batch's rows with its own and the memory's, float32 [n, n + m]; positives; negatives."""
    of_others = labels if memory is None else ops.concatenate([labels, memory_labels])
    same = labels[:, None] == of_others[None, :]
    itself = ops.arange(ops.shape(labels)[0])[:, None] == ops.arange(ops.shape(of_others)[0])[None, :]
    negative = ops.logical_and(ops.logical_not(same), of_others[None, :] >= 0)
    return _cosines(embeddings, memory), ops.logical_and(same, ops.logical_not(itself)), negative


@keras.saving.register_keras_serializable("triplet_miner")
class TripletSemiHardLoss(keras.losses.Loss):
    """`triplet_semihard_loss` for `model.compile`, as TensorFlow Addons had it.

    y_true: integer labels [n] or [n, 1], below 2^24. y_pred: [n, dim], L2-normalised.

    >>> loss = TripletSemiHardLoss(margin=1.0)
    >>> loss([0, 0, 1], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).numpy().item()
    0.0
    """

    def __init__(self, margin: float = 1.0, name: str = "triplet_semihard_loss", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        above_zero(margin=margin)
        self.margin = margin

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return triplet_semihard_loss(ops.reshape(ops.cast(y_true, "int32"), [-1]), y_pred, self.margin)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"margin": self.margin}
