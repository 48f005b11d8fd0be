"""The networks that ship. Anyone's own comes by import path: `--model package.module:function`.

Such a function takes the shape of one example, (height, width, channels) with pixels 0 to 255, (dim,) or () for a
text, and returns a Keras model whose output is [batch, dim], L2-normalised.
"""

from collections.abc import Callable
from typing import Any

import keras

from pipeline.corpus.manifest import Feature

EMBEDDING_DIM = 64
MAX_TOKENS = 20_000  # of the text network's vocabulary: words, and pairs of words next to each other
TOKENS = 128  # that it reads of a text
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


def text(input_shape: tuple[int, ...]) -> Any:
    """The mean of the embeddings of words and of pairs of words, as fastText classifies
    (https://arxiv.org/abs/1607.01759)."""
    inputs = keras.Input(input_shape, dtype="string")
    tokens = keras.layers.TextVectorization(MAX_TOKENS, ngrams=2, output_sequence_length=TOKENS)(inputs)
    x = keras.layers.Embedding(MAX_TOKENS, EMBEDDING_DIM, name="words")(tokens)
    # GlobalAveragePooling1D with a mask gives NaN for a text without a word.
    is_word = keras.ops.expand_dims(keras.ops.cast(keras.ops.not_equal(tokens, 0), x.dtype), -1)
    words = keras.ops.maximum(keras.ops.sum(is_word, axis=1), 1)
    return keras.Model(inputs, _normalised(_batch_norm(keras.ops.sum(x * is_word, axis=1) / words)))


def default_for(kind: str) -> Callable[[tuple[int, ...]], Any]:
    return {"image": convolutional, "text": text, "vector": dense}[kind]


def with_vocabulary(model: Any, texts: Any) -> Any:
    """The model with the vocabulary of its TextVectorization layers in their configs; those without one get it from
    `texts`, a tf.data.Dataset of strings.

    An adapted layer's own way is a text file in the .keras file, which Keras cuts at every character that
    str.splitlines knows: a word with U+2028 in it came back as two, and all after it moved.
    """

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.TextVectorization):
            if layer.vocabulary_size() <= 2:  # padding and the unknown token
                layer.adapt(texts)
            config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False)
        return layer.__class__.from_config(config)

    if not any(isinstance(layer, keras.layers.TextVectorization) for layer in model.layers):
        return model
    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def example_shape(feature: Feature) -> tuple[int, ...]:
    """What a network is built for: a vector's length, nothing of a text, an image's size, at most MAX_SIDE a side."""
    if feature.kind != "image":
        return tuple(size for size in feature.shape if size)
    height, width, channels = feature.shape
    return min(height or MAX_SIDE, MAX_SIDE), min(width or MAX_SIDE, MAX_SIDE), channels or 3
