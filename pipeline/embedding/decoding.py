"""Payloads to what a network takes, in TensorFlow's graph: images are decoded and resized."""

from typing import Any

import tensorflow as tf

from pipeline.corpus.manifest import Feature


def decode(feature: Feature, payload: Any, input_shape: tuple[int, ...]) -> Any:
    """Turns payloads into what a network takes.

    Args:
      payload: string [n] of encoded images or of texts, or float32 [n * dim] of vectors.
      input_shape: of one example as the network takes it: (height, width, channels), (dim,), for texts () or (1,).
    Returns:
      float32 [n, *input_shape], pixels 0 to 255, or string for texts. Images of another size are resized, antialiased.
    """
    if feature.kind != "image":
        return tf.reshape(payload, [-1, *input_shape])
    *size, channels = input_shape
    of_one_size = None not in feature.shape[:2]

    def decode_one(encoded: Any) -> Any:
        image = tf.cast(tf.io.decode_image(encoded, channels=channels, expand_animations=False), tf.float32)
        return image if of_one_size else tf.image.resize(image, size, antialias=True)

    stored = (*feature.shape[:2], channels) if of_one_size else input_shape
    images = tf.map_fn(decode_one, payload, fn_output_signature=tf.TensorSpec(stored, tf.float32))
    return images if stored == input_shape else tf.image.resize(images, size, antialias=True)


def decode_records(feature: Feature, records: Any, input_shape: tuple[int, ...]) -> Any:
    """Corpus records, a string [n] tensor of serialised Examples, to what `decode` gives."""
    spec = tf.io.FixedLenFeature(feature.shape, tf.float32) if feature.kind == "vector" else STRING
    return decode(feature, tf.io.parse_example(records, {feature.kind: spec})[feature.kind], input_shape)


STRING = tf.io.FixedLenFeature([], tf.string)


def input_spec(feature: Feature, shape: tuple[int, ...], rows: int | None = None) -> Any:
    """The tf.TensorSpec of a batch as `decode` gives it."""
    return tf.TensorSpec([rows, *shape], tf.string if feature.kind == "text" else tf.float32)
