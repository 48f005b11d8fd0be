"""Networks of one's own that need more than a .keras file, for `--model own_networks:NAME`."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("own_networks")
class Scale(keras.layers.Layer):
    """A layer of one's own."""

    def __init__(self, factor=1 / 255, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


@keras.saving.register_keras_serializable("own_networks")
class Subclassed(keras.Model):
    """Its own layers, and no fixed input."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scale, self.flatten, self.dense = Scale(), keras.layers.Flatten(), keras.layers.Dense(8)

    def call(self, inputs):
        return self.dense(self.flatten(self.scale(inputs)))


class Unregistered(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def subclassed(shape):
    return Subclassed()


def sequential(shape):
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(8)])


def unregistered(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Dense(8)(keras.layers.Flatten()(Unregistered()(inputs))))


def open_sizes(shape):
    """Takes images of any size."""
    inputs = keras.Input((None, None, shape[-1]))
    x = keras.layers.Conv2D(16, 3, activation="relu")(Scale()(inputs))
    return keras.Model(inputs, keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(x)))


def two_inputs(shape):
    """Of texts: how long they are, and which letters they have."""
    length, letters = keras.Input((1,), name="length"), keras.Input((26,), name="letters")
    return keras.Model({"length": length, "letters": letters}, keras.layers.Dense(8)(
        keras.layers.Concatenate()([length, keras.layers.Dense(16, activation="relu", name="hidden")(letters)])
    ))  # fmt: skip


def letters(texts):
    """Texts to the inputs of `two_inputs`."""
    alphabet = tf.constant([chr(ord("a") + i) for i in range(26)])
    characters = tf.strings.unicode_split(tf.strings.lower(texts), "UTF-8")
    found = tf.reduce_sum(tf.cast(characters[..., None] == alphabet, tf.float32), axis=1)
    length = tf.cast(tf.strings.length(texts), tf.float32)[:, None] / 100
    return {"length": length, "letters": found}


def hollow(texts):
    return {"length": letters(texts)["length"]}


def noisy(inputs, seed):
    return inputs | {"letters": inputs["letters"] + tf.random.stateless_uniform([26], seed)}


def one_colour(images, seed):
    """Leaves nothing to learn from."""
    return tf.zeros_like(images)
