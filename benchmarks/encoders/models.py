"""Models of every kind that `trainer.init --model` takes, small and untrained: commands need only load them."""

from typing import Any

import keras
import keras_hub
import tensorflow as tf
from keras import layers

from benchmarks.encoders import minilm

DIM = 16


def unit(x: Any) -> Any:
    return layers.UnitNormalization()(layers.Dense(DIM)(x))


@keras.saving.register_keras_serializable("benchmarks")
class Subclassed(keras.Model):
    """With a `call` of its own in place of a graph of layers."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(8, 3, activation="relu")
        self.dense = layers.Dense(DIM)
        self.normalise = layers.UnitNormalization()

    def call(self, inputs: Any) -> Any:
        return self.normalise(self.dense(keras.ops.mean(self.convolution(inputs), axis=(1, 2))))


def subclassed(shape: tuple[int, ...]) -> keras.Model:
    model = Subclassed()
    model(keras.ops.zeros((1, *shape)))
    return model


@keras.saving.register_keras_serializable("benchmarks")
class Power(layers.Layer):
    """x to a power that is learned, of x from 0 to 1."""

    def build(self, input_shape: Any) -> None:
        self.exponent = self.add_weight(shape=(), initializer="ones", name="exponent")

    def call(self, inputs: Any) -> Any:
        return keras.ops.power(inputs + 1e-3, self.exponent)


def custom_layer(shape: tuple[int, ...]) -> keras.Model:
    inputs = keras.Input(shape)
    return keras.Model(inputs, unit(layers.Flatten()(Power()(layers.Rescaling(1 / 255)(inputs)))))


def noisy(images: Any, seed: Any) -> Any:
    """For `--augment`: float32 [n, height, width, channels], the same out. seed: int32 [2], another for each batch."""
    noise = tf.random.stateless_normal(tf.shape(images), seed, 0.0, 8.0)
    return tf.clip_by_value(images + noise, 0.0, 255.0)


def image_and_profile(payload: Any) -> dict[str, Any]:
    """For `--preprocess`, of encoded images [n] of scikit-learn's digits: pixels, float32 [n, 8, 8, 1], and profile,
    float32 [n, 8], the mean of each column."""
    spec = tf.TensorSpec([8, 8, 1], tf.uint8)
    pixels = tf.map_fn(lambda one: tf.io.decode_png(one, channels=1), payload, fn_output_signature=spec)
    pixels = tf.cast(pixels, tf.float32)
    return {"pixels": pixels, "profile": tf.reduce_mean(pixels, axis=(1, 3))}


def two_inputs(shape: Any) -> keras.Model:
    pixels, profile = keras.Input((8, 8, 1), name="pixels"), keras.Input((8,), name="profile")
    both = layers.Concatenate()([layers.Flatten()(layers.Rescaling(1 / 255)(pixels)), profile])
    return keras.Model({"pixels": pixels, "profile": profile}, unit(layers.BatchNormalization(momentum=0.9)(both)))


def hub_image(shape: tuple[int, ...]) -> keras.Model:
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block", image_shape=shape,
    )  # fmt: skip
    return keras.Model(backbone.input, unit(layers.GlobalAveragePooling2D()(backbone.output)))


def hub_text(shape: Any) -> keras.Model:
    """With `minilm.preprocess`."""
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30522, num_layers=1, num_heads=2, hidden_dim=DIM, intermediate_dim=32, max_sequence_length=64
    )
    inputs = minilm.inputs()
    vectors = backbone(inputs)["sequence_output"]
    return keras.Model(inputs, unit(layers.GlobalAveragePooling1D()(vectors, mask=inputs["padding_mask"])))
