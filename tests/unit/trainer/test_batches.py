"""Batches against the packs and the corpus that they come from."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from handmade import write_classes

from pipeline.corpus.corpus import Corpus, Split
from pipeline.embedding.decoding import Inputs
from pipeline.errors import InputError
from pipeline.files.layout import Run
from pipeline.mining.manifest import open_triplets, read_packs
from trainer.batches import class_batches, triplet_batches, usable_classes

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def packs(small_mined):
    return list(read_packs(small_mined))


@pytest.fixture(scope="module")
def images(small_mined, packs):
    """What a network takes of each row, by row."""
    inputs, found = Inputs(Corpus.open(small_mined).feature, SHAPE), {}
    for pack in packs:
        found |= zip(pack["row"].tolist(), inputs.of_payload(tf.constant(pack["image"])).numpy(), strict=True)
    return found


def test_no_autotuning_thread_is_waited_for_at_the_end_of_an_epoch(small_mined):
    round, corpus = Run(small_mined).round(0), Corpus.open(small_mined)
    of_packs = triplet_batches(round.triplets, open_triplets(round, corpus), Inputs(corpus.feature, SHAPE), 128, seed=0)
    assert of_packs.options().autotune.enabled is False
    assert class_batches(corpus, Inputs(corpus.feature, SHAPE), 2, 2, 1, seed=0).options().autotune.enabled is False


@pytest.mark.parametrize("batch_rows", [128, 300])
def test_batches_hold_every_pack_once_in_an_order_drawn_by_the_seed(small_mined, packs, images, batch_rows):
    round, corpus = Run(small_mined).round(0), Corpus.open(small_mined)
    manifest = open_triplets(round, corpus)

    def read(seed, first_batch=0):
        found = triplet_batches(round.triplets, manifest, Inputs(corpus.feature, SHAPE), batch_rows, seed, first_batch)
        return [(batch["inputs"].numpy(), batch["triplets"].numpy()) for batch in found]

    def sides(inputs, triplets):
        return {tuple(inputs[place].tobytes() for place in triplet) for triplet in triplets}

    written = set()
    for pack in packs:
        inputs = np.stack([images[row] for row in pack["row"].tolist()])
        written |= sides(inputs, zip(pack["anchor"], pack["positive"], pack["negative"], strict=True))
    once = read(1)
    assert set().union(*(sides(*batch) for batch in once)) == written
    assert sum(len(inputs) for inputs, _ in once) == manifest.rows
    assert max(len(inputs) for inputs, _ in once) <= batch_rows
    assert sum(len(triplets) for _, triplets in once) == manifest.triplets
    again, rest, other = read(1), read(1, first_batch=1), read(2)
    for one, two in zip([*once, *once[1:]], [*again, *rest], strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    assert [inputs.tobytes() for inputs, _ in other] != [inputs.tobytes() for inputs, _ in once]


def in_batch(corpus: Corpus, classes: int, rows: int, steps: int, seed: int = 7, first_step: int = 0):
    found = class_batches(corpus, Inputs(corpus.feature, SHAPE), classes, rows, steps, seed, first_step)
    return [(inputs.numpy(), label.numpy()) for inputs, label in found]


def test_in_batch_batches_are_p_by_k_seeded_and_can_begin_later(small):
    corpus = Corpus.open(small)
    once = in_batch(corpus, 5, 4, steps=6)
    for inputs, label in once:
        assert inputs.shape == (20, *SHAPE)
        assert sorted(np.unique(label, return_counts=True)[1]) == [4] * 5
        assert len({image.tobytes() for image in inputs}) == 20
    later, other = in_batch(corpus, 5, 4, steps=6, first_step=2), in_batch(corpus, 5, 4, steps=6, seed=8)
    for one, two in zip(once[2:], later, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    assert any((one[0] != two[0]).any() for one, two in zip(once, other, strict=True))


def test_in_batch_no_class_and_no_row_comes_again_before_all_have(small):
    corpus = Corpus.open(small)
    smallest = int(np.diff(corpus.split("train").first_rows).min())
    batches = in_batch(corpus, 4, 4, steps=10 * (smallest // 4) // 4)
    labels = np.concatenate([label[::4] for _, label in batches])
    for deck in range(0, len(labels), 10):
        assert len(set(labels[deck : deck + 10])) == len(labels[deck : deck + 10])
    seen = [image.tobytes() for inputs, _ in batches for image in inputs]
    assert len(set(seen)) == len(seen)


def with_classes(corpus: Corpus, sizes: list[int], run_dir: Path) -> Corpus:
    """A copy of the corpus with its train split's first rows in classes of these sizes."""
    shutil.copytree(corpus.directory, Run(run_dir).corpus)
    first_rows = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    shards = corpus.manifest.splits["train"].shards
    cut = write_classes(Run(run_dir).corpus, "train", list(map(str, range(len(sizes)))), first_rows, shards=shards)
    manifest = replace(corpus.manifest, splits={**corpus.manifest.splits, "train": cut})
    return replace(corpus, run_dir=run_dir, manifest=manifest)


def test_a_class_with_fewer_rows_than_a_batch_takes_gives_each_as_often(small, tmp_path):
    corpus = with_classes(Corpus.open(small), [3, 3, 1], tmp_path)
    split: Split = corpus.split("train")
    assert usable_classes(corpus).tolist() == [0, 1]
    payload = {example["image"][0]: row for row, example in enumerate(split.examples(np.arange(6)))}
    assert len(payload) == 6, "different images"
    for inputs, label in in_batch(corpus, 2, 12, steps=2):
        assert sorted(np.unique(label, return_counts=True)[1]) == [12, 12]
        assert set(np.unique(inputs, axis=0, return_counts=True)[1]) == {4}


def test_what_is_left_of_a_deck_does_not_come_together_in_the_next(small):
    """Of 10 classes 4 are dealt at a time: the two that two batches leave are not always in one batch again."""
    labels = [label[::2] for _, label in in_batch(Corpus.open(small), 4, 2, steps=250)]
    together = 0
    for first in range(0, 250, 5):
        left = set(range(10)) - {*labels[first], *labels[first + 1]}
        assert left <= {*labels[first + 2]} and len(set(labels[first + 2])) == 4
        together += any(left <= {*later} for later in labels[first + 3 : first + 5])
    assert together < 40


def test_too_few_classes_are_refused(small, tmp_path):
    with pytest.raises(InputError, match="1 of the classes to train on have two rows or more, triplets need two"):
        usable_classes(with_classes(Corpus.open(small), [3, 1, 1], tmp_path))
