"""Payloads to what a network takes, in TensorFlow's graph: images are decoded and resized, or as the network wants."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from pipeline.corpus.manifest import Feature

AT_ONCE = 10  # images that a batch decodes side by side, tf.map_fn's own number
# That they may have together, 130 MB of RGB, and three batches are under way at once: of larger images a batch decodes
# one after the other.
PIXELS = 45_000_000


@dataclass(frozen=True)
class Inputs:
    """Makes a network's inputs.

    shape: of one example as the network takes it: (height, width, channels), (dim,), for texts () or (1,). preprocess:
    in place of that, the network's own: payloads to a tensor or a dict of tensors, each [n, ...]. augment: inputs and a
    seed, int32 [2], to changed inputs; in training only.
    """

    feature: Feature
    shape: tuple[int, ...] = ()
    preprocess: Callable[[Any], Any] | None = None
    augment: Callable[[Any, Any], Any] | None = None

    def of_payload(self, payload: Any) -> Any:
        """What the network takes of some examples.

        Args:
          payload: string [n] of encoded images or of texts, or float32 [n * dim] of vectors.
        Returns:
          float32 [n, *shape], pixels 0 to 255, or string for texts. Images of another size are resized, antialiased.
          Or what `preprocess` gives.
        """
        if self.preprocess:
            dim = self.feature.shape if self.feature.kind == "vector" else ()
            return self.preprocess(tf.reshape(payload, [-1, *dim]))
        return self._pixels(payload) if self.feature.kind == "image" else tf.reshape(payload, [-1, *self.shape])

    def of_records(self, records: Any) -> Any:
        """The same of corpus records, a string [n] tensor of serialised Examples."""
        kind = self.feature.kind
        spec = tf.io.FixedLenFeature(self.feature.shape if kind == "vector" else [], _dtype(kind))
        return self.of_payload(tf.io.parse_example(records, {kind: spec})[kind])

    def augmented(self, inputs: Any, *seed: Any) -> Any:
        """For training. seed: two integers; equal ones change the inputs equally."""
        return self.augment(inputs, tf.cast(tf.stack(seed), tf.int32)) if self.augment else inputs

    def _pixels(self, encoded: Any) -> Any:
        *size, channels = self.shape
        height, width, *_ = self.feature.shape

        def decode_one(encoded: Any) -> Any:
            image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
            if [height, width] != size:  # before it is float32, which takes four times the memory
                image = tf.image.resize(image, size, antialias=True)
            return tf.cast(image, tf.float32)

        def decode(at_once: int | None) -> Any:
            spec = tf.TensorSpec(self.shape, tf.float32)
            return tf.map_fn(decode_one, encoded, fn_output_signature=spec, parallel_iterations=at_once)

        if height is None or width is None:
            largest = tf.reduce_max(tf.map_fn(_pixels_of, encoded, fn_output_signature=tf.int64))
            return tf.cond(largest <= PIXELS // AT_ONCE, lambda: decode(None), lambda: decode(1))
        return decode(None if height * width <= PIXELS // AT_ONCE else 1)


def _pixels_of(encoded: Any) -> Any:
    """How many pixels a PNG or a JPEG has, by its header: int64 []."""
    size = tf.cond(
        tf.strings.substr(encoded, 1, 3) == b"PNG",
        lambda: tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False),
        lambda: tf.image.extract_jpeg_shape(encoded)[:2],
    )
    return tf.reduce_prod(tf.cast(size, tf.int64))


def _dtype(kind: str) -> Any:
    return tf.float32 if kind == "vector" else tf.string


def rows_of(inputs: Any) -> int:
    """How many examples are in a batch of inputs."""
    return int(tf.nest.flatten(inputs)[0].shape[0])
