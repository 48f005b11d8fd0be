"""The networks that ship. Anyone's own comes by import path: `--model package.module:function`.

Such a function takes the shape of one example, (height, width, channels) with pixels 0 to 255, (dim,) or () for a
text, and returns a Keras model whose output is [batch, dim], L2-normalised.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from pipeline.corpus.manifest import Feature
from pipeline.process.commands import log

EMBEDDING_DIM = 64  # of images
TEXT_DIM = 512  # of texts: a random projection to fewer keeps less of TF-IDF's cosine
MAX_TOKENS = 10_000  # groups of characters that the text network knows, the most frequent
# Adam moves every weight by about its rate: at .3 the recipes' rates turn the projection slowly enough. At .1 it had
# learned its classes by heart, and unseen ones ended lower.
TEXT_SCALE = 0.3
CORRECTION = 0.1  # of what the vector network adds to its input, for the same reason


# A round is some tens of steps: with Keras' momentum of .99 the moving statistics, which mining uses, would
# still be those of rounds before.
def _batch_norm(x: Any) -> Any:
    return keras.layers.BatchNormalization(momentum=0.9)(x)


def convolutional(input_shape: tuple[int, ...]) -> Any:
    """3 x 3 convolutions, each batch-normalised and halved: after Matching Networks, section 4.1.1
    (https://arxiv.org/abs/1606.04080), smaller. Four; more from sides of 64 up, so that 3 x 3
    places or fewer are left."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    filters = [32, 64, 64, 64]
    filters += [64] * max(0, min(input_shape[:2]).bit_length() - 6)
    for count in filters:
        x = keras.layers.Conv2D(count, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(_batch_norm(x))
        if min(x.shape[1:3]) > 1:
            x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dense(EMBEDDING_DIM)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.UnitNormalization(name="embedding")(x))


def dense(input_shape: tuple[int, ...]) -> Any:
    """The vector itself, L2-normalised, and a correction of one hidden layer, which begins as nothing.

    A pretrained encoder's cosines are thus what training starts from, and are not learned anew.
    """
    [dim] = input_shape
    inputs = keras.Input(input_shape)
    unit = keras.layers.UnitNormalization()(inputs)
    x = keras.layers.Dense(256, activation="relu")(keras.layers.Rescaling(dim**0.5)(unit))
    # A bias that only a vector of zeros feels: without it that would stay zeros.
    x = keras.layers.Dense(dim, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(2e-5))(x)
    x = keras.layers.Add()([unit, keras.layers.Rescaling(CORRECTION)(x)])
    return keras.Model(inputs, keras.layers.UnitNormalization(name="embedding")(x))


def text(input_shape: tuple[int, ...]) -> Any:
    """TF-IDF of groups of one to four characters, and a projection, which begins as a random one.

    A random projection about keeps cosines (Johnson and Lindenstrauss), those of words never met too. Groups of
    characters are there in languages that put no spaces between words.
    """
    inputs = keras.Input(input_shape, dtype="string")
    x = keras.layers.TextVectorization(
        MAX_TOKENS, split="character", ngrams=(1, 2, 3, 4), output_mode="tf_idf", pad_to_max_tokens=True
    )(inputs)
    random = keras.initializers.RandomNormal(stddev=TEXT_SCALE)
    projection = keras.layers.Dense(TEXT_DIM, kernel_initializer=random, bias_initializer=random, name="projection")
    x = projection(x)
    kernel = projection.kernel.numpy()
    kernel[0] = 0  # all groups not known are one entry: a new text has many, and they would outweigh what is known
    projection.kernel.assign(kernel)
    return keras.Model(inputs, keras.layers.UnitNormalization(name="embedding")(x))


def default_for(kind: str) -> Callable[[tuple[int, ...]], Any]:
    return {"image": convolutional, "text": text, "vector": dense}[kind]


def _adapt(layer: Any, texts: Any) -> None:
    """What `layer.adapt` does, in a graph: text by text in Python it takes minutes for 200,000."""
    count = tf.function(layer.update_state, input_signature=[texts.element_spec], autograph=False)
    layer.reset_state()
    for batch in texts:
        count(batch)
    layer.finalize_state()


def with_vocabulary(model: Any, texts: Any) -> Any:
    """The model with vocabulary and document frequencies of its TextVectorization layers in their configs; those
    without a vocabulary get it from `texts`, a tf.data.Dataset of strings.

    An adapted layer's own way is a text file in the .keras file, which Keras cuts at every character that
    str.splitlines knows: a word with U+2028 in it came back as two, and all after it moved.
    """

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.TextVectorization):
            if layer.vocabulary_size() <= 2:  # padding and the unknown token
                _adapt(layer, texts)
            words = config["vocabulary"] = layer.get_vocabulary(include_special_tokens=False)
            kept: dict[str, Any] = {}
            layer.save_own_variables(kept)
            if "idf_weights" in kept:  # after that of unknown words, and before padding
                config["idf_weights"] = kept["idf_weights"][1 : 1 + len(words)].tolist()
        return layer.__class__.from_config(config)

    if not any(isinstance(layer, keras.layers.TextVectorization) for layer in model.layers):
        return model
    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def example_shape(feature: Feature, max_side: int) -> tuple[int, ...]:
    """What a network is built for: a vector's length, nothing of a text, an image's size, at most max_side a side."""
    if feature.kind != "image":
        return tuple(size for size in feature.shape if size)
    height, width, channels = feature.shape
    return min(height or max_side, max_side), min(width or max_side, max_side), channels or 3


def say_shrinking(feature: Feature, shape: tuple[int, ...]) -> None:
    """Says where a network takes images smaller than they are stored, or stored in many sizes."""
    if feature.kind != "image" or not shape:
        return
    height, width, _ = feature.shape
    taken = f"{shape[0]} x {shape[1]}"
    if height is None or width is None:
        log.info("images of any size are scaled to %s; another: trainer.init --max_side", taken)
    elif height > shape[0] or width > shape[1]:
        log.info("images are shrunk from %d x %d to %s; less so: trainer.init --max_side", height, width, taken)
