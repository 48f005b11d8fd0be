"""Keras' batch normalisation by TensorFlow's fused kernel.

Keras 3 spells it out as a dozen operations, each of which goes through the whole batch in memory
(https://github.com/keras-team/keras-core/issues/225): a third of a training step of the convolutional network. The
layers stay Keras' own, and so does what is saved of them.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.records import import_tensorflow

tf = import_tensorflow()
import keras  # noqa: E402

MIN_EPSILON = 1.001e-5  # of cuDNN's kernel


def leaves(model: Any) -> list[Any]:
    """The layers of a model, and of the models in it, in order."""
    found = [leaves(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    return [layer for of_it in found for layer in of_it]


@contextmanager
def fused(model: Any, real: Any = None) -> Iterator[None]:
    """While inside, calls of the model take the fused kernel where it does what a layer asks for.

    real: float32 [rows]; training statistics leave out the rows for which it is 0. The kernel cannot: Keras' own code
    does it then.
    """
    layers = {id(layer): layer for layer in leaves(model) if type(layer) is keras.layers.BatchNormalization}.values()
    for layer in layers:
        layer.call = functools.partial(_call, layer) if real is None else functools.partial(_masked, layer, real)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _masked(layer: Any, real: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    """Keras passes a mask of its own, which is None here."""
    return type(layer).call(layer, inputs, training=training, mask=tf.reshape(real, [-1] + [1] * (inputs.ndim - 2)))


def _call(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    learns = bool(training and layer.trainable)
    as_usual = mask is None and not layer.renorm and not (learns and layer.synchronized)
    fits = inputs.shape.rank == 4 and layer.axis in (-1, 3) and layer.variable_dtype == "float32"
    if not (as_usual and fits and inputs.dtype != tf.float64 and layer.epsilon >= MIN_EPSILON):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    ones = tf.ones([inputs.shape[-1]])
    moving = () if learns else (layer.moving_mean.value, layer.moving_variance.value)
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        tf.cast(inputs, tf.float32), layer.gamma.value if layer.scale else ones,
        layer.beta.value if layer.center else tf.zeros_like(ones), *moving,
        epsilon=layer.epsilon, is_training=learns,
    )  # fmt: skip
    if learns:
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        variance *= (count - 1) / count  # the kernel's is of a sample, Keras' of the batch
        for variable, now in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            variable.assign(variable * layer.momentum + now * (1 - layer.momentum))
    return tf.cast(outputs, layer.compute_dtype)
