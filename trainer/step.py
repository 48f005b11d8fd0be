"""One training step, on every device there is."""

import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.embedding.decoding import rows_of
from pipeline.embedding.network import layers_of
from pipeline.errors import InputError
from trainer import losses
from trainer.kinds import Kinds
from trainer.memory import Memory
from trainer.options import MEMORY_TEMPERATURE, Rates, TrainOptions

SUMS = ("loss", "active", "d_ap", "d_an", "memory_loss")


def strategy_for(devices: Sequence[Any]) -> Any:
    """MirroredStrategy for several GPUs, else TensorFlow's default."""
    return tf.distribute.MirroredStrategy() if len(devices) > 1 else tf.distribute.get_strategy()


def optimizer_of(options: TrainOptions) -> Any:
    """The optimizer that the options name."""
    if '"learning_rate"' in options.optimizer:
        what = f"optimizer {options.optimizer!r} has a learning_rate, and each step sets another"
        raise InputError(f"{what}. Leave it out, and give --learning_rate.")
    try:
        config = json.loads(options.optimizer) if options.optimizer.startswith("{") else options.optimizer
        return keras.optimizers.get(config)
    except (ValueError, TypeError) as error:
        what = f"optimizer {options.optimizer!r} is none of Keras: {str(error)[:300]}"
        raise InputError(f"{what}. Give a name, as adamw, or a config as JSON.") from None


def scaled_for(model: keras.Model, optimizer: Any) -> Any:
    """The optimizer; for a model of policy mixed_float16 one that scales the loss, as `model.compile` would: gradients
    of float16 would be lost."""
    policies = {layer.dtype_policy.name for layer in layers_of(model)}
    return keras.optimizers.LossScaleOptimizer(optimizer) if "mixed_float16" in policies else optimizer


class Step:
    """Updates the model from one batch of `trainer.batches.triplet_batches` per device.

    The gradient is that of the loss's mean over the triplets of all devices' batches (of `active-triplet`: of each
    device's mean, weighted by its triplets; of `semi-hard`, which picks its own: weighted by its rows), and of the
    memory's loss, if there is one: of each device's mean, weighted by its rows. All of a step is one call of a graph,
    from which nothing comes back to the host unless it is read.
    """

    def __init__(
        self, model: keras.Model, optimizer: Any, loss: str, margin: float, strategy: Any, spec: Any,
        layer_rates: Rates = (), memory: Memory | None = None, temperature: float = MEMORY_TEMPERATURE,
        kinds: Kinds | None = None,
    ):  # fmt: skip
        """kinds: of `semi-hard`, of the rows as batches number them."""
        self._strategy = strategy
        rates = _rates(model, layer_rates)
        # One trace for all shapes: traces for two shapes may round differently, and a resumed run would differ.
        # Values per device take no signature.
        loss_of: Any = None if kinds else losses.LOSSES[loss](margin)
        signature = [spec, tf.TensorSpec([2])] if strategy.num_replicas_in_sync == 1 else None

        def on_one(batch: dict[str, Any], share: Any) -> Any:
            with tf.GradientTape() as tape:
                embeddings = model(batch["inputs"], training=True)
                d_ap, d_an = losses.triplet_distances(embeddings, batch["triplets"])
                if kinds:
                    related = kinds(batch["row"], batch["row"])
                    value = losses.picked_triplet_loss(embeddings, *related, margin) * share[1]
                else:
                    each = loss_of.of_distances(d_ap, d_an)
                    value = losses.mean_or_zero(each, tf.ones_like(each)) * share[0]
                of_memory = 0.0
                if memory:
                    of_memory = losses.memory_loss(embeddings, *memory.compared(batch), temperature) * share[1]
                scaled = optimizer.scale_loss(value + of_memory)  # by 1 but in float16
            gradients = tape.gradient(scaled, model.trainable_variables)
            before = [variable + 0 for variable, _ in rates]
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            for (variable, factor), old in zip(rates, before, strict=True):  # of any optimizer's update, its decay too
                variable.assign(old + factor * (variable - old))
            sums = _sums(d_ap, d_an, margin) * tf.cast(share[1] > 0, tf.float32)
            return tf.concat([[value], sums, [of_memory]], axis=0), embeddings

        @tf.function(input_signature=signature, autograph=False)
        def on_all(batches: Any, shares: Any) -> Any:
            values, embeddings = strategy.run(on_one, (batches, shares))
            if memory:
                memory.renew(strategy, batches, embeddings)
            return strategy.reduce("SUM", values, axis=None)

        self._on_all = on_all

    def __call__(self, batches: list[dict[str, Any]]) -> Any:
        """SUMS, a tensor float32 [5]: the loss; over the batches' triplets how many are active, and the sums of d_ap
        and d_an; the loss of the memory."""
        replicas = self._strategy.num_replicas_in_sync
        missing = replicas - len(batches)  # at the end of an epoch: a batch again, with no weight
        counts = np.array([[len(batch["triplets"]), rows_of(batch["inputs"])] for batch in batches], np.float32)
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


def _rates(model: keras.Model, layer_rates: Rates) -> list[tuple[Any, float]]:
    """The variables of the layers that are named, with their factors."""
    found = []
    for name, factor in layer_rates:
        layers = [layer for layer in layers_of(model) if layer.name == name]
        if not layers:
            names = ", ".join(layer.name for layer in model.layers)
            raise InputError(f"layer_rates: the network has no layer {name!r}; it has {names}")
        found += [(variable, factor) for layer in layers for variable in layer.trainable_variables]
    return found


def _sums(d_ap: Any, d_an: Any, margin: float) -> Any:
    active = tf.cast(margin + d_ap - d_an > 0, tf.float32)
    return tf.stack([tf.reduce_sum(value) for value in (active, d_ap, d_an)])
