"""Networks of one's own, for `--model networks:NAME`: right ones, and wrong ones."""

import os

import keras

NO_FUNCTION = 3


def dropout(shape):
    inputs = keras.Input(shape)
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Dense(16)(x)))


def vectorising(shape, vocabulary=None):
    """Of texts."""
    inputs = keras.Input((1,), dtype="string")
    tokens = keras.layers.TextVectorization(50, vocabulary=vocabulary, output_sequence_length=4)(inputs)
    x = keras.layers.GlobalMaxPooling1D()(keras.layers.Embedding(50, 8)(tokens))
    return keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Dense(8)(x)))


def narrow(shape):
    """Two numbers: too few for most."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Dense(2)(inputs)))


def unnormalised(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Dense(16)(keras.layers.Flatten()(inputs)))


def zero(shape):
    inputs = keras.Input(shape)
    x = keras.layers.Dense(16, kernel_initializer="zeros")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.UnitNormalization()(x))


def numbers(shape):
    return unnormalised((4,))


def feature_map(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))


def two_outputs(shape):
    inputs = keras.Input(shape)
    flat = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, [keras.layers.Dense(4)(flat), keras.layers.Dense(4)(flat)])


def text_to_pixels(shape):
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, keras.layers.Embedding(10, 4)(keras.layers.TextVectorization(10)(inputs)))


def identity(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.UnitNormalization()(inputs))


def mobilenet(shape):
    """keras.applications with weights from a local file, as the README shows it."""
    base = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), include_top=False, pooling="avg", weights=os.environ["MOBILENET_WEIGHTS"]
    )
    return keras.Model(base.input, keras.layers.UnitNormalization()(keras.layers.Dense(64)(base.output)))
