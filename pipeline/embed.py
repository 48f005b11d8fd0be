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
      payload: string [n] of encoded images or of texts, or float32 [n * dim] of vectors.
      input_shape: of one example as the network takes it: (height, width, channels), (dim,), for texts () or (1,).
    Returns:
      float32 [n, *input_shape], pixels 0 to 255, or string for texts. Images of another size are resized, antialiased.
    """
    tf = import_tensorflow()
    spec = next(iter(features.values()))
    if spec["kind"] in ("vector", "text"):
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
    """Corpus records, a string [n] tensor of serialised Examples, to what `decode` gives."""
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
    kind, inputs = spec["kind"], model.inputs or []
    shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else None
    fits = shape is not None and None not in shape and (inputs[0].dtype == "string") == (kind == "text")
    right = {"image": len(shape or ()) == 3, "text": shape in ((), (1,)), "vector": list(shape or ()) == spec["shape"]}
    if shape is None or not fits or not right[kind]:
        takes = ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in inputs) or "no fixed input"
        raise InputError(
            f"{name}: the network takes {takes}, the corpus has {feature} of shape {spec['shape']}. It must take one "
            f"input: [batch, height, width, channels] for images, [batch, dim] for vectors, strings [batch] or "
            f"[batch, 1] for texts."
        )
    return shape


def check_output(model: Any, name: Path | str) -> None:
    """Refuses a network that does not give one vector an example."""
    if not isinstance(model.output_shape, tuple) or len(model.output_shape) != 2:
        raise InputError(
            f"{name}: the network gives {model.output_shape}, expected [batch, dim]: one vector an example. End it "
            f"with a pooling layer or keras.layers.Flatten(), and keras.layers.UnitNormalization()."
        )


def input_spec(features: dict[str, dict[str, Any]], shape: tuple[int, ...], rows: int | None = None) -> Any:
    """The tf.TensorSpec of a batch as `decode` gives it."""
    tf = import_tensorflow()
    is_text = next(iter(features.values()))["kind"] == "text"
    return tf.TensorSpec([rows, *shape], tf.string if is_text else tf.float32)


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
        check_output(self.model, checkpoint)
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
                f"Train from an earlier checkpoint, or end the network with keras.layers.UnitNormalization() "
                f"(--init --normalize appends it)."
            )
        return to_grid(embeddings.astype(np.float32))
