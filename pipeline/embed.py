"""Records in, embeddings out: the one preprocessing and forward pass of mining, training and evaluation."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.records import Corpus, InputError, import_tensorflow, load_checkpoint
from pipeline.selection import to_grid

BATCH = 256
CALLS = 2  # batches under way at once: what one call leaves of the cores, decoding or between layers, another takes


def decode(features: dict[str, dict[str, Any]], payload: Any, input_shape: tuple[int, ...]) -> Any:
    """Turns payloads into what a network takes.

    Args:
      features: of the corpus; the first one is decoded.
      payload: string [n] of encoded images, or float32 [n * dim] of vectors.
      input_shape: of one example as the network takes it, (height, width, channels) or (dim,).
    Returns:
      float32 [n, *input_shape]; pixels 0 to 255. Images of another size are resized with antialiasing.
    """
    tf = import_tensorflow()
    spec = next(iter(features.values()))
    if spec["kind"] == "vector":
        return tf.reshape(payload, [-1, *input_shape])
    height, width, channels = input_shape

    def decode_one(encoded: Any) -> Any:
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        image = tf.cast(image, tf.float32)
        if tuple(spec["shape"][:2]) != (height, width):
            image = tf.image.resize(image, (height, width), antialias=True)
        return tf.ensure_shape(image, (height, width, channels))

    return tf.map_fn(decode_one, payload, fn_output_signature=tf.float32)


def decode_records(features: dict[str, dict[str, Any]], records: Any, input_shape: tuple[int, ...]) -> Any:
    """Corpus records, a string [n] tensor of serialised Examples, to float32 [n, *input_shape]."""
    tf = import_tensorflow()
    name, spec = next(iter(features.items()))
    if spec["kind"] == "vector":
        parsed = tf.io.parse_example(records, {name: tf.io.FixedLenFeature(spec["shape"], tf.float32)})
    else:
        parsed = tf.io.parse_example(records, {name: tf.io.FixedLenFeature([], tf.string)})
    return decode(features, parsed[name], input_shape)


def network_input_shape(model: Any, features: dict[str, dict[str, Any]], name: Path | str) -> tuple[int, ...]:
    """The network's input shape, checked against the corpus' first feature."""
    feature, spec = next(iter(features.items()))
    shape = tuple(model.input_shape[1:]) if isinstance(model.input_shape, tuple) else None
    expected = 3 if spec["kind"] == "image" else 1
    if shape is None or len(shape) != expected or None in shape or (expected == 1 and list(shape) != spec["shape"]):
        raise InputError(
            f"{name}: the network takes {model.input_shape}, the corpus has {feature} of shape {spec['shape']}. "
            f"It must take one input: [batch, height, width, channels] for images, [batch, dim] for vectors."
        )
    return shape


class Embedder:
    """Embeds corpus records with one checkpoint.

    Batches are cut from the rows given and padded to one size, so that how the work is divided into calls of
    the same rows never changes a result.
    """

    def __init__(self, checkpoint: Path, corpus: Corpus):
        tf = import_tensorflow()
        self.checkpoint = checkpoint
        self.model = load_checkpoint(checkpoint)
        shape = network_input_shape(self.model, corpus.features, checkpoint)
        if not isinstance(self.model.output_shape, tuple) or len(self.model.output_shape) != 2:
            raise InputError(f"{checkpoint}: the network gives {self.model.output_shape}, expected [batch, dim].")
        self.dim = int(self.model.output_shape[1])

        @tf.function(input_signature=[tf.TensorSpec([BATCH], tf.string)])  # type: ignore[untyped-decorator]
        def embed_batch(records: Any) -> Any:
            return self.model(decode_records(corpus.features, records, shape), training=False)

        self._embed_batch = embed_batch

    def __call__(self, records: list[bytes], first_row: int = 0) -> np.ndarray:
        """float32 [n, dim], L2-normalised, on the grid. `first_row` only names rows in errors."""
        tf = import_tensorflow()

        def embed(start: int) -> np.ndarray:
            batch = records[start : start + BATCH]
            vectors: np.ndarray = self._embed_batch(tf.constant(batch + [batch[-1]] * (BATCH - len(batch)))).numpy()
            return vectors

        with ThreadPoolExecutor(CALLS) as pool:
            parts = list(pool.map(embed, range(0, len(records), BATCH)))
        embeddings = np.concatenate(parts)[: len(records)] if parts else np.empty((0, self.dim), np.float32)
        norm = np.linalg.norm(embeddings, axis=1)
        bad = np.flatnonzero(~(np.abs(norm - 1) < 1e-3))
        if len(bad):
            what = {0: "zero"}.get(norm[bad[0]], f"of length {norm[bad[0]]:.4g}")
            raise InputError(
                f"{self.checkpoint}: {len(bad)} of {len(records)} embeddings are not L2-normalised; rows "
                f"{(bad[:5] + first_row).tolist()}, the first is {'NaN' if np.isnan(norm[bad[0]]) else what}. "
                f"Train from an earlier checkpoint, or end the network with keras.layers.UnitNormalization()."
            )
        return to_grid(embeddings.astype(np.float32))
