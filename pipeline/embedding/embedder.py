"""Records in, embeddings out: the one preprocessing and forward pass of mining, training and evaluation."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Split
from pipeline.corpus.manifest import Feature
from pipeline.embedding.network import UNIT, Network, output_dim, unit_tolerance
from pipeline.errors import InputError
from pipeline.triplets.rows import to_grid

BATCH = 128
CALLS = 3  # batches under way at once: what one call leaves of the cores, decoding or between layers, another takes
CHUNK_ROWS = 4096  # whose payload is in memory at a time where a whole split is embedded


class Embedder:
    """Embeds corpus records with one network.

    Batches are cut from the rows given and padded to one size, so that how the work is divided into calls of
    the same rows never changes a result.
    """

    def __init__(self, network: Network, feature: Feature):
        self.network, inputs = network, network.inputs(feature)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        def embed_batch(records: Any) -> Any:
            return network.model(tf.nest.map_structure(_padded, inputs.of_records(records)), training=False)

        self._embed_batch = embed_batch.get_concrete_function()  # traced here, once: threads would each do it
        output = self._embed_batch.structured_outputs
        self.dim, self._tolerance = output_dim(output, network.name), unit_tolerance(output.dtype)

    def __call__(self, records: list[bytes], rows: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, dim], L2-normalised, on the grid. rows: int64 [n], only names them in errors."""
        if not records:
            return np.empty((0, self.dim), np.float32)

        def embed(start: int) -> np.ndarray:
            batch = records[start : start + BATCH]
            vectors: np.ndarray = self._embed_batch(tf.constant(batch)).numpy()
            return vectors[: len(batch)]

        with ThreadPoolExecutor(CALLS) as calls:
            embeddings = np.concatenate(list(calls.map(embed, range(0, len(records), BATCH)))).astype(np.float32)
        norm = np.linalg.norm(embeddings, axis=1)
        bad = np.flatnonzero(~(np.abs(norm - 1) < self._tolerance))
        if len(bad):
            where = bad if rows is None else rows[bad]
            what = {0: "zero"}.get(norm[bad[0]], f"of length {norm[bad[0]]:.4g}")
            raise InputError(
                f"{self.network.name}: {len(bad)} of {len(records)} embeddings are not L2-normalised; rows "
                f"{where[:5].tolist()}, the first is {'NaN' if np.isnan(norm[bad[0]]) else what}. "
                f"Train from an earlier checkpoint, or end the network with keras.layers.UnitNormalization(), as "
                f"trainer.init does where it is missing."
            )
        return to_grid(embeddings if self._tolerance == UNIT else embeddings / norm[:, None])

    def chunks(self, split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows, int64 [n], and their embeddings, float32 [n, dim], of a whole split, CHUNK_ROWS at a time."""
        for start in range(0, split.rows, CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, split.rows))
            yield rows, self(split.read(rows), rows)

    def split(self, split: Split) -> np.ndarray:
        """float32 [rows, dim] of a whole split; the payload is in memory a part at a time."""
        return np.concatenate([np.empty((0, self.dim), np.float32), *(part for _, part in self.chunks(split))])


def _padded(values: Any) -> Any:
    """A batch of inputs as one of BATCH, its last example again and again: decoded once."""
    missing = BATCH - tf.shape(values)[0]
    whole = tf.concat([values, tf.repeat(values[-1:], missing, axis=0)], axis=0)
    return tf.ensure_shape(whole, [BATCH, *values.shape[1:]])
