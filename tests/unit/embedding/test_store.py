"""The embeddings of a round on disk."""

import numpy as np
import pytest
from handmade import write_corpus

from pipeline.embedding.store import EmbeddingStore
from pipeline.files import storage
from pipeline.files.layout import Round

VECTORS = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.fixture
def store(tmp_path):
    corpus = write_corpus(tmp_path, ["a", "a", "b", "b", "b", "c"], VECTORS, groups=["g", None, "h", "g", None, "h"],
                          shard_rows=4)  # fmt: skip
    found = EmbeddingStore(Round(tmp_path, 0), corpus, "digest")
    for number, rows in enumerate((slice(0, 4), slice(4, 6))):
        found.write(number, VECTORS[rows], "this machine")
    return found


def test_rows_are_read_in_the_order_asked_for(store):
    rows = np.array([5, 0, 0, 3])
    np.testing.assert_array_equal(store.embeddings(rows), VECTORS[rows])
    block = store.block(rows)
    assert block.group.tolist() == [1, 0, 0, 0] and block.content is None and store.dim == 4


def test_embeddings_that_are_not_whole_are_not_there(store):
    assert store.made_on(0) == store.made_on(1) == "this machine"
    np.save(store.path(0), np.zeros((4, 4), np.float32))
    [note] = store.directory.glob("*00001-of-00002.sha256")
    note.unlink()
    assert store.made_on(0) is store.made_on(1) is None
    store.write(0, VECTORS[:4], "this machine")
    assert store.made_on(0) == "this machine"


def test_each_shard_says_on_which_kind_of_machine_it_was_made(store):
    store.write(1, VECTORS[4:], "another, with GPUs")
    assert store.made_on(1) == "another, with GPUs" and store.machines() == ["another, with GPUs", "this machine"]
    note = store.path(0).with_suffix(".sha256")
    note.write_text(note.read_text().split()[0])  # as it was written before
    assert store.made_on(0) == ""


@pytest.mark.parametrize("stored", [np.zeros((3, 4), np.float32), np.zeros((4, 4)), np.zeros(16, np.float32)])
def test_embeddings_of_another_shape_are_not_there(store, stored):
    storage.write_checked(store.path(0), lambda temporary: np.save(temporary, stored))
    assert not store.has(0) and store.has(1)


def test_another_checkpoint_has_another_folder(store, tmp_path):
    assert store.directory.parent == Round(tmp_path, 0).path / "embeddings"
    assert EmbeddingStore(Round(tmp_path, 0), write_corpus(tmp_path, ["a"], VECTORS[:1]), "digest") != store


def test_a_shard_is_read_while_the_first_is_not_there_yet(store):
    """On several workers the shards come in any order."""
    store.path(0).unlink()
    np.testing.assert_array_equal(store.embeddings(np.array([5, 4])), VECTORS[[5, 4]])
