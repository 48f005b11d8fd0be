"""One training step: on every device there is, in mixed precision and compiled by XLA where that is asked for.

XLA compiles for one shape, so batches for it are padded; padding counts neither in the loss nor in the statistics of
batch normalisation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.batch_norm import fused, leaves
from pipeline.records import import_tensorflow
from trainer import losses

tf = import_tensorflow()


def strategy_for(devices: Sequence[Any]) -> Any:
    """MirroredStrategy for several GPUs, else TensorFlow's default. GPU memory is taken as it is needed."""
    for device in devices:
        tf.config.experimental.set_memory_growth(device, True)
    return tf.distribute.MirroredStrategy() if len(devices) > 1 else tf.distribute.get_strategy()


@contextmanager
def mixed_precision(model: Any) -> Iterator[None]:
    """While inside, layers compute in bfloat16, but for the last; weights, embeddings and distances stay float32.

    bfloat16 has float32's range, so that no loss scaling is needed (https://www.tensorflow.org/guide/mixed_precision).
    """
    before = [(layer, layer.dtype_policy) for layer in leaves(model)[:-1]]
    try:
        for layer, _ in before:
            layer.dtype_policy = "mixed_bfloat16"
        yield
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy


class Step:
    """Updates the model from one batch of `trainer.data.triplet_batches` per device.

    Where the round has stored rows, `StoredRows.add` has completed it.

    The gradient is that of the loss's mean over the triplets of all devices' batches (of `active-triplet`: of each
    device's mean, weighted by its triplets), and of the stored rows' loss: of each device's mean, weighted by its rows.
    Batch normalisation takes its statistics per device, as usual, unless its layers are `synchronized`.
    """

    def __init__(
        self, model: Any, optimizer: Any, loss: str, margin: float, strategy: Any, spec: Any, jit: bool = False
    ):
        self._model, self._strategy, self._jit = model, strategy, jit
        # One trace for all shapes: traces for two shapes may round differently, and a resumed run would differ.
        # Values per device take no signature.
        signature = [spec, tf.TensorSpec([2])] if strategy.num_replicas_in_sync == 1 else None

        # XLA takes the gradients, not the update: that one talks to the other devices.
        @tf.function(jit_compile=jit, autograph=False)  # type: ignore[untyped-decorator]
        def gradients(batch: dict[str, Any], share: Any) -> Any:
            with tf.GradientTape() as tape:
                embeddings = self._embed(batch)
                d_ap, d_an = losses.triplet_distances(embeddings, batch["triplets"])
                value = losses.LOSSES[loss](d_ap, d_an, margin, batch["valid"])
                of_stored = _stored_rows_loss(embeddings, batch)
                weighted = value * share[0] + of_stored * share[1]
            sums = _sums(d_ap, d_an, margin, batch["valid"])
            return value, sums, of_stored, embeddings, tape.gradient(weighted, model.trainable_variables)

        def on_one(batch: dict[str, Any], share: Any) -> Any:
            value, sums, of_stored, embeddings, found = gradients(batch, share)
            optimizer.apply_gradients(zip(found, model.trainable_variables, strict=True))
            sums *= tf.cast(share[1] > 0, tf.float32)
            return tf.concat([[value * share[0]], sums, [of_stored * share[1]]], axis=0), embeddings

        def measure_one(batch: dict[str, Any]) -> Any:
            d_ap, d_an = losses.triplet_distances(self._embed(batch), batch["triplets"])
            return _sums(d_ap, d_an, margin, batch["valid"])

        @tf.function(input_signature=signature, autograph=False)  # type: ignore[untyped-decorator]
        def on_all(batches: Any, shares: Any) -> Any:
            values, embeddings = strategy.run(on_one, (batches, shares))
            return strategy.reduce("SUM", values, axis=None), strategy.experimental_local_results(embeddings)

        self._on_all = on_all
        self._measure = tf.function(measure_one, input_signature=[spec], autograph=False)

    def _embed(self, batch: dict[str, Any]) -> Any:
        with fused(self._model, batch["real"] if self._jit else None):
            return self._model(batch["inputs"], training=True)

    def __call__(self, batches: list[dict[str, Any]]) -> tuple[np.ndarray, Any]:
        """float64 [5]: the loss; over the batches' triplets how many are active, and the sums of d_ap and d_an; and
        the loss of the stored rows. And the embeddings that each batch had, tensors [R, dim]."""
        values, embeddings = self._run(batches)
        return values.numpy().astype(float), embeddings[: len(batches)]

    def _run(self, batches: list[dict[str, Any]]) -> Any:
        replicas = self._strategy.num_replicas_in_sync
        missing = replicas - len(batches)  # at the end of an epoch: a batch again, with no weight
        counts = np.array([[batch[name].numpy().sum() for name in ("valid", "real")] for batch in batches], np.float32)
        shares = [*(counts / np.maximum(counts.sum(axis=0), 1)), *[np.zeros(2, np.float32)] * missing]
        batches = batches + [batches[-1]] * missing
        if replicas == 1:
            return self._on_all(batches[0], tf.constant(shares[0]))

        def spread(values: list[Any]) -> Any:
            return self._strategy.experimental_distribute_values_from_function(
                lambda context: values[context.replica_id_in_sync_group]
            )

        each = {name: spread([batch[name] for batch in batches]) for name in batches[0]}
        return self._on_all(each, spread([tf.constant(share) for share in shares]))

    def active(self, batches: Any) -> float:
        """Which share of the batches' triplets has a loss above 0 in training mode.

        Distances were mined in inference mode; batch normalisation and dropout make the two differ. What the
        passes do to the moving statistics is undone.
        """
        state = [variable.numpy() for variable in self._model.non_trainable_variables]
        active = total = 0.0
        for batch in batches:
            active += float(self._measure(batch)[0])
            total += float(tf.reduce_sum(batch["valid"]))
        for variable, value in zip(self._model.non_trainable_variables, state, strict=True):
            variable.assign(value)
        return active / max(total, 1.0)


def _stored_rows_loss(embeddings: Any, batch: dict[str, Any]) -> Any:
    """0 for a batch without stored rows."""
    names = ("stored", "stored_positive", "stored_negative", "batch_positive")
    return losses.stored_rows_loss(embeddings, *(batch[name] for name in names)) if "stored_positive" in batch else 0.0


def _sums(d_ap: Any, d_an: Any, margin: float, valid: Any) -> Any:
    active = tf.cast(margin + d_ap - d_an > 0, tf.float32)
    return tf.stack([tf.reduce_sum(value * valid) for value in (active, d_ap, d_an)])
