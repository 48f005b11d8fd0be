"""The memory: who is whose positive and negative, what is drawn, what a step makes of it."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from handmade import write_classes

from pipeline.corpus.corpus import Corpus, Split
from pipeline.embedding.decoding import Inputs
from pipeline.embedding.store import GIVEN, EmbeddingStore
from pipeline.errors import InputError
from pipeline.files.layout import Run
from pipeline.mining.manifest import open_triplets
from pipeline.triplets.rows import Block
from trainer.batches import triplet_batches
from trainer.memory import CLASSMATES, Memory

CLASSES, ROWS = 12, 20


def memory_of(label, content=None, group=None, most=10_000, seed=0) -> Memory:
    """Of rows with these labels (ascending), codes of content and groups; embeddings of their own numbers."""
    first_rows = np.searchsorted(label, np.arange(label.max() + 2))
    with tempfile.TemporaryDirectory() as directory:
        names = list(map(str, range(label.max() + 1)))
        classes = write_classes(Path(directory), "train", names, first_rows.tolist(), copies=int(content is not None))
        split = Split(directory=Path(directory), name="train", manifest=classes, grouped=group is not None)
        assert len(split.first_rows) == len(first_rows), "read while it is there"

    def block(rows):
        codes = {n: None if c is None else c[rows] for n, c in (("content", content), ("group", group))}
        return Block(row=rows, embedding=np.repeat(rows[:, None], 2, axis=1).astype(np.float32), **codes)

    return Memory(SimpleNamespace(split=split, block=block, files=0), most, seed)


def rows_with_copies_and_groups():
    """240 rows of 12 classes, with copies inside and across classes, and groups across classes; -1: none."""
    rng = np.random.default_rng(0)
    content, group = np.arange(240), rng.integers(-1, 40, 240)
    content[200:230] = content[rng.integers(0, 200, 30)]
    return np.repeat(np.arange(CLASSES), ROWS), content, group


def compared(memory, rows):
    """The rows that these are compared with, by what they have in the memory; positives, negatives, those of the batch.
    """
    embedding, *kinds = memory.compared(memory.of_batch(tf.constant(rows)))
    return embedding[:, 0].numpy().astype(int), *(kind.numpy() for kind in kinds)


@pytest.mark.parametrize("most", [10_000, 90])
def test_positives_and_negatives_are_those_of_mining(most):
    label, content, group = rows_with_copies_and_groups()
    memory = memory_of(label, content, group, most)
    rows = np.random.default_rng(1).choice(240, 40, replace=False)
    of_memory, positive, negative, batch_positive = compared(memory, rows)
    assert len(np.unique(of_memory)) == min(most, 240)
    for i, a in enumerate(rows):
        for j, b in enumerate(of_memory):
            copy, grouped = content[a] == content[b], group[a] == group[b] >= 0
            assert positive[i, j] == (label[a] == label[b] and not copy)
            assert negative[i, j] == (label[a] != label[b] and not copy and not grouped)
        for j, b in enumerate(rows):
            assert batch_positive[i, j] == (label[a] == label[b] and content[a] != content[b])


def test_without_copies_and_groups_a_row_is_no_positive_of_itself():
    memory = memory_of(np.repeat(np.arange(3), 4))
    of_memory, positive, negative, batch_positive = compared(memory, np.array([1, 5]))
    assert np.flatnonzero(positive[0]).tolist() == [0, 2, 3] and np.flatnonzero(negative[0]).tolist() == [*range(4, 12)]
    assert of_memory.tolist() == [*range(12)] and not batch_positive.any()


def test_a_draw_has_classmates_for_every_row_is_seeded_and_otherwise_uniform():
    label = np.repeat(np.arange(CLASSES), 30)
    rows = np.array([62, 65, 215])  # of classes 2 and 7

    def drawn(seed):
        return compared(memory_of(label, most=100, seed=seed), rows)[0]

    assert all(len(np.unique(drawn(seed))) == 100 for seed in range(3))
    assert all(np.sum(label[drawn(0)] == of) >= CLASSMATES for of in (2, 7))
    np.testing.assert_array_equal(drawn(0), drawn(0))
    assert not np.array_equal(drawn(0), drawn(1))
    counts = sum(np.bincount(label[drawn(seed)], minlength=CLASSES) for seed in range(200))
    others = np.delete(counts, [2, 7])
    assert others.max() / others.min() < 1.2


@pytest.mark.parametrize("most", [10_000, 100])
def test_batches_come_with_what_they_are_compared_with_and_a_step_renews_it(small_mined, most):
    round, corpus = Run(small_mined).round(0), Corpus.open(small_mined)
    manifest = open_triplets(round, corpus)
    store = EmbeddingStore(round, corpus, manifest.checkpoint_digest)
    memory, mined = Memory(store, most, 0), store.embeddings(np.arange(store.split.rows))
    inputs, one_device = Inputs(corpus.feature, (8, 8, 1)), tf.distribute.get_strategy()
    first, second = list(triplet_batches(round.triplets, manifest, inputs, 128, 1, memory=memory).take(2))
    for batch in (first, second):
        rows = batch.get("memory_row", np.arange(len(mined)))
        embedding, _, negative, _ = memory.compared(batch)
        assert len(rows) == min(most, len(mined)) and negative.numpy().any(axis=1).all()
        np.testing.assert_array_equal(embedding, mined[rows])
    memory.renew(one_device, first, tf.constant(-mined[first["row"].numpy()]))
    renewed = np.isin(np.arange(len(mined)), first["row"].numpy())
    np.testing.assert_array_equal(memory.embedding, np.where(renewed[:, None], -mined, mined))


def test_of_a_row_that_a_batch_has_twice_the_first_embedding_counts():
    memory, rows = memory_of(np.repeat(np.arange(3), 4)), tf.constant([2, 7, 2], tf.int64)
    memory.renew(tf.distribute.get_strategy(), {"row": rows}, tf.constant([[50.0, 50], [60, 60], [70, 70]]))
    assert memory.embedding[:, 0].numpy().tolist() == [0, 1, 50, 3, 4, 5, 6, 60, 8, 9, 10, 11]


def test_embeddings_that_are_gone_or_altered_are_named(small_mined, tmp_path):
    store = EmbeddingStore(Run(tmp_path).round(0), Corpus.open(small_mined), "of a checkpoint")
    for shard in range(len(store.split.shards)):
        store.write(shard, np.ones((store.split.shards[shard].records, 2), np.float32), GIVEN)
    assert Memory(store, 100, 0).embedding.shape == (store.split.rows, 2)
    path = store.path(0)
    np.save(path, 2 * np.load(path))
    with pytest.raises(InputError, match=rf"{path} is not what was mined with.*--memory_rows 0"):
        Memory(store, 100, 0)
    path.unlink()
    with pytest.raises(InputError, match=rf"{path} is missing"):
        Memory(store, 100, 0)
