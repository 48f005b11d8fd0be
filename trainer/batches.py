"""Triplet TFRecords to batches; and, for the warm-up, corpus records to batches of P classes x K rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import Feature
from pipeline.embedding.decoding import Inputs
from pipeline.errors import InputError, at_least_one
from pipeline.files import tfrecords
from pipeline.files.layout import Run
from pipeline.files.storage import is_local
from pipeline.mining.manifest import TripletsManifest, open_triplets
from pipeline.mining.mined import Mined
from pipeline.triplets.draws import draw_key
from trainer.memory import Memory


def triplet_batches(
    directory: Path,
    manifest: TripletsManifest,
    inputs: Inputs,
    batch_rows: int,
    seed: int,
    first_batch: int = 0,
    memory: Memory | None = None,
) -> Any:
    """One epoch of a round's packs, in an order drawn from `seed`.

    Args:
      directory: holds the shards that the manifest lists.
      inputs: of the network.
      batch_rows: how many images a batch holds at most; a pack is never cut.
      first_batch: how many batches of the epoch to leave out at its start.
      memory: for the entries that its `compared` and `renew` take.
    Returns:
      A tf.data.Dataset of dicts. inputs: of R examples, as the network takes them, augmented; triplets: int32 [T, 3],
      positions in inputs of anchor, positive, negative; row: int64 [R], numbers in the corpus, or in a memory that
      holds a part of it.
    """
    kind = manifest.feature.kind
    paths = [str(directory / shard.file) for shard in manifest.shards]
    order = np.random.default_rng(seed).permutation(len(paths))
    packs = tf.data.Dataset.from_tensor_slices([paths[i] for i in order])
    packs = packs.interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=4, deterministic=True)
    packs = packs.shuffle(1024 if manifest.packing.pack_rows < 8 else 64, seed=seed)
    packs = packs.batch(packs_per_batch(manifest, batch_rows)).enumerate().skip(first_batch)

    integers = ("row", "anchor", "positive", "negative")
    schema = {key: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64) for key in integers}
    schema[kind] = tf.io.RaggedFeature(tf.float32 if kind == "vector" else tf.string, row_splits_dtype=tf.int64)

    @tf.autograph.experimental.do_not_convert
    def parse(number: Any, serialised: Any) -> dict[str, Any]:
        pack = tf.io.parse_example(serialised, schema)
        first = tf.gather(pack["row"].row_starts(), pack["anchor"].value_rowids())  # row of each triplet's pack
        sides = [pack[side].values + first for side in ("anchor", "positive", "negative")]
        taken = inputs.augmented(inputs.of_payload(pack[kind].values), seed, number)
        row = pack["row"].values
        batch = {"inputs": taken, "triplets": tf.cast(tf.stack(sides, axis=1), tf.int32), "row": row}
        return batch | (memory.of_batch(row) if memory else {})

    return _ahead(packs.map(parse))


def check_lengths(directory: Path, manifest: TripletsManifest) -> None:
    """Of all records, before tf.data reads them. Raises InputError."""
    for shard in manifest.shards:
        tfrecords.check_lengths(directory / shard.file, shard.records)


def triplet_dataset(
    mined: Mined | Path | str,
    batch_size: int = 128,
    *,
    round: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Any:
    """A mined round for `model.fit`, with a loss of `trainer.losses` on triplets.

    Args:
      mined: what `mine_corpus` returned, or a run directory.
      batch_size: rows a batch holds at most; a pack is never cut, so a larger one is a batch by itself.
      round: of a run directory; None for the newest that is mined.
      input_shape: of one example as the model takes it: images are scaled to (height, width, channels). None: as they
        are stored.
      seed: of the order, which is another in each epoch.
    Returns:
      A tf.data.Dataset of pairs. inputs [r, *input_shape], float32 (pixels 0 to 255), of texts strings; triplets int32
      [t, 3], the positions in inputs of anchor, positive and negative. Each row is there once, however many triplets
      it is in.
    Raises:
      InputError: if nothing is mined, if batch_size is below 1 or seed below 0, if a file is not what its manifest
        says, if input_shape is none that the corpus can have, or if images differ in size and none is given.

    >>> model.compile("adam", TripletLoss(margin=0.2))                                  # doctest: +SKIP
    >>> model.fit(triplet_dataset("runs/digits"), epochs=2, shuffle=False)              # doctest: +SKIP
    """
    at_least_one(batch_size=batch_size)
    if seed < 0:
        raise InputError(f"seed must be 0 or more; found {seed}")
    run_dir, number = (mined.run_dir, mined.round) if isinstance(mined, Mined) else (mined, round)
    corpus = Corpus.open(run_dir)
    run = Run(corpus.run_dir)
    if not is_local(run.path):
        raise InputError(f"{run.path} is in a bucket, tf.data reads files of a disk: copy the run directory to one.")
    found = run.mined(number)
    manifest = open_triplets(found, corpus)
    stored = tuple(size or 0 for size in manifest.feature.shape)
    if input_shape is None and 0 in stored:
        raise InputError(f"{corpus.directory}: images differ in size; give input_shape=(height, width, channels)")
    shape = stored if input_shape is None else _fitting(manifest.feature, tuple(input_shape))
    check_lengths(found.triplets, manifest)
    batches = triplet_batches(found.triplets, manifest, Inputs(manifest.feature, shape), batch_size, seed)
    pairs = batches.map(lambda batch: (batch["inputs"], batch["triplets"]))
    count = -(-manifest.packs // packs_per_batch(manifest, batch_size))
    return pairs.apply(tf.data.experimental.assert_cardinality(count))


def _fitting(feature: Feature, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, if examples can have it."""
    is_image = len(shape) == 3 and all(size and size > 0 for size in shape) and shape[2] in (1, 3)
    fits, wanted = {
        "image": (is_image, "(height, width, 1 or 3 channels)"),
        "text": (shape in ((), (1,)), "() or (1,)"),
        "vector": (shape == feature.shape, feature.shape),
    }[feature.kind]
    if not fits:
        raise InputError(f"input_shape of a {feature.kind} must be {wanted}; found {shape}")
    return shape


def _ahead(batches: Any) -> Any:
    """Makes the next batches while one is trained on: one at a time, for its images are decoded in parallel already.

    Without autotuning: its thread at times sleeps through the end of an epoch, and the epoch waits for it, for 2.6 s.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)


def packs_per_batch(manifest: TripletsManifest, batch_rows: int) -> int:
    return max(1, batch_rows // manifest.packing.pack_rows)


def usable_classes(corpus: Corpus) -> np.ndarray:
    """The classes with two rows or more in the train split; two of them at the least."""
    usable = np.flatnonzero(np.diff(corpus.split("train").first_rows) >= 2)
    if len(usable) < 2:
        raise InputError(
            f"{corpus.directory}: {len(usable)} of the classes to train on have two rows or more, triplets need two. "
            f"Ingest a source with more into a new --run_dir."
        )
    return usable


def class_batches(
    corpus: Corpus,
    inputs: Inputs,
    classes: int,
    rows_per_class: int,
    steps: int,
    seed: int,
    first_step: int = 0,
) -> Any:
    """Batches of P classes x K rows of the train split, shuffled; those before first_step left out.

    Classes are dealt like cards, and so are the rows of a class: none comes again before all have come.

    Returns:
      A tf.data.Dataset of `steps` - `first_step` pairs: what the network takes of P * K examples, augmented, and labels
      int64 [P * K].
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
                drawn, rows_left[label] = np.split(rows_left[label], [rows_per_class])
                rows.append(drawn)
            if step >= first_step:
                yield split.read(np.concatenate(rows)), np.repeat(chosen, rows_per_class)

    signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64))
    batches = tf.data.Dataset.from_generator(draw, output_signature=signature).enumerate(first_step)

    def prepare(step: Any, batch: Any) -> Any:
        records, labels = batch
        return inputs.augmented(inputs.of_records(records), seed, step), labels

    return _ahead(batches.map(prepare))


def _shuffled(rng: np.random.Generator, left: np.ndarray, deck: np.ndarray, count: int) -> np.ndarray:
    """What is left of a deck, and whole ones after it until there are `count`, which differ if a deck has so many."""
    while len(left) < count:
        fresh = rng.permutation(deck)
        first = np.flatnonzero(~np.isin(fresh, left))[: count - len(left)]
        left = np.concatenate([left, fresh[first], np.delete(fresh, first)])
    return left
