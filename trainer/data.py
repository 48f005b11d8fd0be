"""Triplet TFRecords to batches; and, for the warm-up, corpus records to batches of P classes x K rows."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.embed import decode, decode_records
from pipeline.records import Corpus, InputError, import_tensorflow
from pipeline.selection import draw_key
from trainer.stored import StoredRows

tf = import_tensorflow()

DECODED_BYTES = 512 << 20  # decoded images kept in memory


class Decoded:
    """What a network takes of rows, by row: an image is in several packs of a round, and decoded for the first.

    Rows are kept until DECODED_BYTES are full. Safe between threads.
    """

    def __init__(self, features: dict[str, dict[str, Any]], input_shape: tuple[int, ...]):
        self._features, self._shape = features, input_shape
        self._kept: dict[int, np.ndarray] = {}
        self._room = DECODED_BYTES // (4 * int(np.prod(input_shape, dtype=np.int64)))
        self._decode = _decoder(json.dumps(features), input_shape)

    def __call__(self, rows: Any, payload: Any) -> Any:
        """float32 [n, *input_shape] of int64 [n] rows and their encoded images, string [n]; as `decode` gives it.

        Texts, which are strings, and vectors are as they are.
        """
        if next(iter(self._features.values()))["kind"] != "image":
            return decode(self._features, payload, self._shape)
        inputs = tf.numpy_function(self._look_up, [rows, payload], tf.float32, stateful=False)
        return tf.ensure_shape(inputs, (None, *self._shape))

    def clear(self) -> None:
        """Forgets the rows. TensorFlow never lets go of a numpy_function, nor of this with it."""
        self._kept.clear()

    def _look_up(self, rows: np.ndarray, payload: np.ndarray) -> np.ndarray:
        found: list[Any] = [self._kept.get(row) for row in rows.tolist()]
        missing = [place for place, image in enumerate(found) if image is None]
        if missing:
            decoded = self._decode(tf.constant(payload[missing])).numpy()
            for place, image in zip(missing, decoded, strict=True):
                found[place] = image
                if len(self._kept) < self._room:
                    self._kept[int(rows[place])] = image.copy()  # not a view, which would keep the whole batch
        return np.stack(found)


@functools.lru_cache(maxsize=1)
def _decoder(features: str, input_shape: tuple[int, ...]) -> Any:
    """`decode` as a function of TensorFlow, traced once for all rounds of a process. features: as JSON."""
    signature = [tf.TensorSpec([None], tf.string)]  # one trace for all numbers of rows
    decoded = json.loads(features)
    return tf.function(
        lambda payload: decode(decoded, payload, input_shape), input_signature=signature, autograph=False
    )


def triplet_batches(
    directory: Path,
    manifest: dict[str, Any],
    input_shape: tuple[int, ...],
    batch_rows: int,
    seed: int,
    first_batch: int = 0,
    pad: bool = False,
    decoded: Decoded | None = None,
    stored: StoredRows | None = None,
) -> Any:
    """One epoch of a round's packs, in an order drawn from `seed`.

    Args:
      directory: holds the shards that `manifest` (triplets.json) lists.
      batch_rows: how many images a batch holds at most; a pack is never cut.
      first_batch: how many batches of the epoch to leave out at its start.
      pad: to one shape, R = batch_rows and T = the most triplets that so many packs have.
      decoded: kept from epoch to epoch of a round.
      stored: for the entries that its `add` and `renew` take, masks among them.
    Returns:
      A tf.data.Dataset of dicts. inputs: [R, *input_shape], float32, of texts string, and real: float32 [R], 0 where a
      row is padding; triplets: int32 [T, 3], positions in inputs of anchor, positive, negative, and valid: float32 [T],
      0 where a triplet is padding.
    """
    name, spec = next(iter(manifest["features"].items()))
    decoded = decoded or Decoded(manifest["features"], input_shape)
    paths = [str(directory / shard["file"]) for shard in manifest["shards"]]
    order = np.random.default_rng(seed).permutation(len(paths))
    packs = tf.data.Dataset.from_tensor_slices([paths[i] for i in order])
    packs = packs.interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=4, deterministic=True)
    packs = packs.shuffle(1024 if manifest["pack_rows"] < 8 else 64, seed=seed)
    size = packs_per_batch(manifest, batch_rows)
    packs = packs.batch(size).skip(first_batch)
    most = size * max(
        shard.get("max_pack_triplets", manifest["pack_rows"] * (manifest["pack_rows"] - 1))
        for shard in manifest["shards"]
    )

    integers = ("row", "anchor", "positive", "negative")
    schema = {key: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64) for key in integers}
    kind = tf.float32 if spec["kind"] == "vector" else tf.string
    schema[name] = tf.io.RaggedFeature(kind, row_splits_dtype=tf.int64)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def parse(serialised: Any) -> dict[str, Any]:
        pack = tf.io.parse_example(serialised, schema)
        first = tf.gather(pack["row"].row_starts(), pack["anchor"].value_rowids())  # row of each triplet's pack
        sides = [pack[side].values + first for side in ("anchor", "positive", "negative")]
        inputs = decoded(pack["row"].values, pack[name].values)
        triplets = tf.cast(tf.stack(sides, axis=1), tf.int32)
        rows = batch_rows if pad else tf.shape(inputs)[0]
        inputs, real = padded(inputs, rows)
        valid = tf.ones_like(triplets[:, 0], tf.float32)
        if pad:  # with triplets of the first row alone
            rest = most - tf.shape(triplets)[0]
            triplets, valid = tf.pad(triplets, [[0, rest], [0, 0]]), tf.pad(valid, [[0, rest]])
            triplets, valid = tf.ensure_shape(triplets, (most, 3)), tf.ensure_shape(valid, (most,))
        batch = {"inputs": inputs, "real": real, "triplets": triplets, "valid": valid}
        return batch | (stored.of_batch(pack["row"].values, rows) if stored else {})

    return _ahead(packs.map(parse))


def _ahead(batches: Any) -> Any:
    """Makes the next batches while one is trained on: one at a time, for its images are decoded in parallel already.

    Without autotuning: its thread at times sleeps through the end of an epoch, and the epoch waits for it, for 2.6 s.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)


def packs_per_batch(manifest: dict[str, Any], batch_rows: int) -> int:
    return max(1, batch_rows // int(manifest["pack_rows"]))


def padded(values: Any, length: Any) -> tuple[Any, Any]:
    """Values [n, ...] with copies of the first after them, [length, ...]; and float32 [length], 1 for those before.

    Copies, because a network may have no finite gradient at zeros.
    """
    there = tf.range(length) < tf.shape(values)[0]
    full = tf.gather(values, tf.where(there, tf.range(length), 0))
    return full, tf.cast(there, tf.float32)


def usable_classes(corpus: Corpus) -> np.ndarray:
    """The classes with two rows or more in the train split; two of them at the least."""
    usable = np.flatnonzero(np.diff(corpus.split("train").first_rows) >= 2)
    if len(usable) < 2:
        raise InputError(
            f"{corpus.directory}: {len(usable)} of the classes to train on have two rows or more, triplets need two. "
            f"Ingest a source with more into a new --run_dir."
        )
    return usable


def online_batches(
    corpus: Corpus,
    input_shape: tuple[int, ...],
    classes: int,
    rows_per_class: int,
    steps: int,
    seed: int,
    first_step: int = 0,
) -> Any:
    """Batches of P classes x K rows of the train split, shuffled; those before first_step left out.

    Classes are dealt like cards, and so are the rows of a class: none comes again before all have come.

    Returns:
      A tf.data.Dataset of `steps` - `first_step` pairs: inputs [P * K, *input_shape] and labels int64 [P * K].
    """
    split = corpus.split("train")
    usable = usable_classes(corpus)
    classes = min(classes, len(usable))

    def draw() -> Iterator[tuple[list[bytes], np.ndarray]]:
        rng = np.random.default_rng(int(draw_key(seed, 0, "online")))
        none = np.empty(0, np.int64)
        classes_left, rows_left = none, {label: none for label in usable.tolist()}
        for step in range(steps):
            if len(classes_left) < classes:
                classes_left = _shuffled(rng, classes_left, usable, classes)
            chosen, classes_left = np.split(classes_left, [classes])
            rows = []
            for label in chosen.tolist():
                if len(rows_left[label]) < rows_per_class:
                    own = np.arange(*split.first_rows[label : label + 2])
                    rows_left[label] = _shuffled(rng, rows_left[label], own, rows_per_class)
                some, rows_left[label] = np.split(rows_left[label], [rows_per_class])
                rows.append(some)
            if step >= first_step:
                yield split.read(np.concatenate(rows)), np.repeat(chosen, rows_per_class)

    signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64))
    drawn = tf.data.Dataset.from_generator(draw, output_signature=signature)
    return _ahead(drawn.map(lambda records, labels: (decode_records(corpus.features, records, input_shape), labels)))


def _shuffled(rng: np.random.Generator, left: np.ndarray, deck: np.ndarray, count: int) -> np.ndarray:
    """What is left of a deck, and whole ones after it until there are `count`, which differ if a deck has so many."""
    while len(left) < count:
        fresh = rng.permutation(deck)
        first = np.flatnonzero(~np.isin(fresh, left))[: count - len(left)]
        left = np.concatenate([left, fresh[first], np.delete(fresh, first)])
    return left
