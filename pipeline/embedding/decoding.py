"""Payloads to what a network takes, in TensorFlow's graph: images are decoded and resized, or as the network wants."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from pipeline.corpus.manifest import Feature


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
        of_one_size = None not in self.feature.shape[:2]

        def decode_one(encoded: Any) -> Any:
            image = tf.cast(tf.io.decode_image(encoded, channels=channels, expand_animations=False), tf.float32)
            return image if of_one_size else tf.image.resize(image, size, antialias=True)

        stored = (*self.feature.shape[:2], channels) if of_one_size else self.shape
        images = tf.map_fn(decode_one, encoded, fn_output_signature=tf.TensorSpec(stored, tf.float32))
        return images if stored == self.shape else tf.image.resize(images, size, antialias=True)


def _dtype(kind: str) -> Any:
    return tf.float32 if kind == "vector" else tf.string


def rows_of(inputs: Any) -> int:
    """How many examples are in a batch of inputs."""
    return int(tf.nest.flatten(inputs)[0].shape[0])
