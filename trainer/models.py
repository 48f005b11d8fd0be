"""The networks that ship. Anyone's own comes by import path: `--model package.module:function`.

Such a function takes the shape of one example, (height, width, channels) with pixels 0 to 255 or (dim,), and
returns a Keras model whose output is [batch, dim], L2-normalised.
"""

import importlib
from collections.abc import Callable
from typing import Any

from pipeline.records import InputError, import_tensorflow

import_tensorflow()
import keras  # noqa: E402

EMBEDDING_DIM = 64
MAX_SIDE = 32  # larger images are shrunk to this side for the network that ships


def _normalised(x: Any) -> Any:
    x = keras.layers.Dense(EMBEDDING_DIM)(x)
    return keras.layers.UnitNormalization(name="embedding")(x)


# A round is some tens of steps: with Keras' momentum of .99 the moving statistics, which mining uses, would
# still be those of rounds before.
def _batch_norm(x: Any) -> Any:
    return keras.layers.BatchNormalization(momentum=0.9)(x)


def convolutional(input_shape: tuple[int, ...]) -> Any:
    """Four 3 x 3 convolutions, each batch-normalised and halved: after Matching Networks, section 4.1.1
    (https://arxiv.org/abs/1606.04080), smaller."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for filters in (32, 64, 64, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(_batch_norm(x))
        if min(x.shape[1:3]) > 1:
            x = keras.layers.MaxPooling2D()(x)
    return keras.Model(inputs, _normalised(keras.layers.Flatten()(x)))


def dense(input_shape: tuple[int, ...]) -> Any:
    """Two hidden layers of 256, batch-normalised."""
    inputs = keras.Input(input_shape)
    x = _batch_norm(inputs)
    for _ in range(2):
        x = keras.layers.ReLU()(_batch_norm(keras.layers.Dense(256, use_bias=False)(x)))
    return keras.Model(inputs, _normalised(x))


def default_for(kind: str) -> Callable[[tuple[int, ...]], Any]:
    return convolutional if kind == "image" else dense


def by_path(path: str) -> Callable[[tuple[int, ...]], Any]:
    """The function that `package.module:function` names."""
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--model {path}: {error}. Give package.module:function, importable from here.") from None
    if not callable(function):
        raise InputError(f"--model {path} is a {type(function).__name__}, expected a function.")
    return function  # type: ignore[no-any-return]


def example_shape(spec: dict[str, Any]) -> tuple[int, ...]:
    """What a network is built for: a vector's length, or an image's size, at most MAX_SIDE a side."""
    if spec["kind"] == "vector":
        return tuple(spec["shape"])
    height, width, channels = spec["shape"]
    return min(height or MAX_SIDE, MAX_SIDE), min(width or MAX_SIDE, MAX_SIDE), channels
