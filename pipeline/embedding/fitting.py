"""Anybody's Keras model as a network of ours: functional, with unit vectors as output."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.corpus.manifest import Feature
from pipeline.embedding.decoding import Inputs
from pipeline.embedding.network import Network, layers_of, output_dim, unit_tolerance
from pipeline.errors import InputError
from pipeline.process.commands import log


def fit_network(
    network: Network, feature: Feature, records: list[bytes], is_trained_elsewhere: bool = False
) -> Network:
    """The network as a functional model that ends in unit vectors, with the modules of its classes among its imports.

    A UnitNormalization is appended, and that said, unless its first output has length 1.

    Args:
      records: of the corpus, to try it on.
      is_trained_elsewhere: what is returned is not what its user trains, so nothing is appended.
    Raises:
      InputError: if it cannot take them, does not give one vector an example, or one that must have length 1 and has
        not.
    """
    model, own, batches = network.model, network.extras.preprocess, tf.data.Dataset.from_tensors(records)
    try:
        if not getattr(model, "inputs", None):  # subclassed, or Sequential without an Input
            inputs = network.inputs(feature) if own else Inputs(feature, network.extras.shape)
            spec = batches.map(inputs.of_records).element_spec
            several = isinstance(spec, dict)
            symbols = {name: _symbol(one, name) for name, one in spec.items()} if several else _symbol(spec)
            model = keras.Model(symbols, model(symbols))
        inputs = replace(network, model=model).inputs(feature)
        output = model(next(iter(batches.map(inputs.of_records))), training=False)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, tf.errors.OpError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{network.name} cannot take a row of the corpus: {str(error)[:500]}") from error
    output_dim(output, network.name)
    length = float(np.linalg.norm(tf.cast(output[:1], tf.float32)))
    if np.isfinite(length) and abs(length - 1) >= unit_tolerance(output.dtype):
        if is_trained_elsewhere:
            raise InputError(
                f"{network.name}: an output has length {length:.3g}, not 1. Let it end in "
                f"keras.layers.UnitNormalization(), so that you train on the distances that are mined."
            )
        log.info("%s: an output has length %.3g, not 1; UnitNormalization() was appended", network.name, length)
        unit = keras.layers.UnitNormalization(name="normalised", dtype="float32")
        model = keras.Model(model.input, unit(model.output))
    modules = {type(layer).__module__.partition(".src.")[0] for layer in (model, *layers_of(model))}
    foreign = modules - {"keras", "__main__"}
    open_sizes = not own and None in model.inputs[0].shape[1:]
    extras = replace(
        network.extras, imports=tuple(sorted(foreign.union(network.extras.imports))),
        shape=network.extras.shape if open_sizes else (),
    )  # fmt: skip
    return replace(network, model=model, extras=extras)


def _symbol(spec: tf.TensorSpec, name: str | None = None) -> Any:
    return keras.Input(tuple(spec.shape[1:]), dtype=spec.dtype.name, name=name)
