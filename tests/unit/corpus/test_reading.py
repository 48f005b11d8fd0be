"""A corpus on disk that is not what its manifest lists, or whose manifest does not fit itself."""

from dataclasses import replace

import numpy as np
import pytest
from handmade import write_corpus

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import INDEX, Feature, SplitManifest
from pipeline.errors import InputError
from pipeline.files import manifests, storage
from pipeline.files.layout import Run
from pipeline.files.manifests import Shard


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path, ["a", "a", "b", "b", "b"], [b"%d" % n for n in range(5)], kind="text", shard_rows=3)


def rewrite(corpus, **changes):
    """Writes another manifest, with the fingerprint that it has then."""
    manifest = replace(corpus.manifest, **changes)
    path = Run(corpus.run_dir).corpus_manifest
    manifests.write(path, replace(manifest, fingerprint=manifest.computed_fingerprint()))


def with_train(corpus, **changes):
    return corpus.manifest.splits | {"train": replace(corpus.manifest.splits["train"], **changes)}


READS = [lambda split: split.read(np.array([4])), lambda split: split.codes("group", np.array([4]))]


@pytest.mark.parametrize("read", READS)
def test_an_index_is_compared_with_the_manifest_before_it_is_read(corpus, read):
    path = corpus.directory / corpus.split("train").shards[1].index
    read(corpus.split("train"))
    index = np.load(path)
    index["group"][1] = 7
    path.unlink()
    np.save(path, index)
    with pytest.raises(InputError, match=f"{path} is not what .*corpus.json lists"):
        read(corpus.split("train"))


@pytest.mark.parametrize("index", [np.zeros(3, INDEX), np.zeros((2, 4), np.int64)])
def test_an_index_of_another_length_is_refused_though_its_manifest_fits(corpus, index):
    first, last = corpus.split("train").shards
    path = corpus.directory / last.index
    path.unlink()
    np.save(path, index)
    told = {"index_bytes": path.stat().st_size, "index_sha256": storage.sha256_of(path)}
    rewrite(corpus, splits=with_train(corpus, shards=[first, replace(last, **told)]))
    with pytest.raises(InputError, match=f"{path} holds .*, .*corpus.json lists 2 records"):
        Corpus.open(corpus.run_dir).split("train").codes("group", np.array([4]))


@pytest.mark.parametrize("offset", [-1, 2**62, 1])
@pytest.mark.parametrize("field", ["offset", "length"])
def test_an_index_that_points_outside_its_file_reads_nothing(corpus, field, offset):
    first, last = corpus.split("train").shards
    path = corpus.directory / last.index
    index = np.load(path)
    index[field] = offset
    path.unlink()
    np.save(path, index)
    rewrite(corpus, splits=with_train(corpus, shards=[first, replace(last, index_sha256=storage.sha256_of(path))]))
    with pytest.raises(InputError, match="is corrupt: its data's checksum is wrong"):
        Corpus.open(corpus.run_dir).split("train").read(np.array([4]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([[0, 1, 5]]), "expected 1 triplets of rows below 5"), (np.array([[-1, 1, 2]]), "below 5"),
        (np.array([[0, 1]]), r"holds int64 \[1, 2\]"), (np.zeros((1, 3)), "holds float64"),
    ],
)  # fmt: skip
def test_given_triplets_of_rows_that_there_are_not_are_refused(corpus, rows, message):
    path = corpus.directory / "given.npy"
    for content in (np.array([[0, 1, 4]]), rows):
        storage.save_array(path, content)
        entry = Shard(file=path.name, records=1, bytes=path.stat().st_size, sha256=storage.sha256_of(path))
        rewrite(corpus, given_triplets=entry)
        if content is not rows:
            assert Corpus.open(corpus.run_dir).given_triplets().tolist() == [[0, 1, 4]]
    with pytest.raises(InputError, match=f"given.npy.*{message}"):
        Corpus.open(corpus.run_dir).given_triplets()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"first_rows": Shard(file="a.npy", records=2, bytes=1, sha256="")}, "its first_rows are 2, it has 2 labels"),
        ({"rows": 2**60}, f"its shards hold 5 records, expected {2**60}"),
        ({"shards": []}, "its shards hold 0 records, expected 5"),
    ],
)  # fmt: skip
def test_a_split_whose_numbers_do_not_fit_is_refused(corpus, train, message):
    rewrite(corpus, splits=with_train(corpus, **train))
    with pytest.raises(InputError, match=f"corpus.json: .*{message}"):
        Corpus.open(corpus.run_dir)


@pytest.mark.parametrize(
    "first_rows", [np.array([0, 6, 5]), np.array([1, 2, 5]), np.array([0, 2, 6]), np.zeros(3), np.array([[0, 2, 5]])]
)
def test_first_rows_that_do_not_cut_the_rows_into_classes_are_refused(corpus, first_rows):
    path = corpus.directory / "train.first_rows.npy"
    storage.save_array(path, first_rows)
    rewrite(corpus, splits=with_train(corpus, first_rows=Shard.of(path, 3)))
    split = Corpus.open(corpus.run_dir).split("train")
    with pytest.raises(InputError, match=f"{path} does not cut 5 rows into 2 classes. Ingest into a new --run_dir"):
        split.class_of(np.arange(5))


def test_labels_of_another_number_than_classes_are_refused(corpus):
    path = corpus.directory / "train.labels.jsonl"
    assert Corpus.open(corpus.run_dir).split("train").labels == ["a", "b"]
    manifests.write_json_lines(path, ["a", "b", "c"])
    rewrite(corpus, splits=with_train(corpus, labels=Shard.of(path, 2)))
    with pytest.raises(InputError, match=f"{path} holds 3 labels, expected 2. Ingest into a new --run_dir"):
        _ = Corpus.open(corpus.run_dir).split("train").labels


@pytest.mark.parametrize("name", ["labels", "first_rows"])
def test_labels_and_first_rows_are_opened_when_they_are_needed_and_compared_with_the_manifest(corpus, name):
    path = corpus.directory / getattr(corpus.manifest.splits["train"], name).file
    path.write_bytes(path.read_bytes()[::-1])
    split = Corpus.open(corpus.run_dir).split("train")
    assert (split.rows, split.classes, len(split.read(np.arange(5)))) == (5, 2, 5)
    with pytest.raises(InputError, match=f"{path} is not what .*corpus.json lists"):
        getattr(split, name)
    with pytest.raises(InputError, match=f"{path} is not what .*corpus.json lists"):
        split.check()


def test_labels_are_in_the_fingerprint(corpus):
    path = corpus.directory / "train.labels.jsonl"
    manifests.write_json_lines(path, ["a", "c"])
    rewrite(corpus, splits=with_train(corpus, labels=Shard.of(path, 2)))
    assert Corpus.open(corpus.run_dir).fingerprint != corpus.fingerprint


def test_a_corpus_of_the_first_format_is_refused(corpus):
    path = Run(corpus.run_dir).corpus_manifest
    path.write_text(path.read_text().replace("triplet-miner-corpus/2", "triplet-miner-corpus/1"))
    with pytest.raises(InputError, match="triplet-miner-corpus/1', .*/2'. Ingest again, into a new --run_dir."):
        Corpus.open(corpus.run_dir)


NOTHING = SplitManifest(
    rows=0, labels=Shard(file="a.jsonl", records=0, bytes=0, sha256=""), copies=0, label_conflicts=0, shards=[],
    first_rows=Shard(file="a.npy", records=1, bytes=0, sha256=""),
)  # fmt: skip
TEXT = Feature(kind="text", shape=(), dtype="string")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"train": NOTHING}}, "its splits are train, expected train, validation, eval"),
        ({"features": {}}, "its features are , expected one of image, text, vector"),
        ({"features": {"text": TEXT, "image": TEXT}}, "its features are text, image"),
        ({"features": {"sound": replace(TEXT, kind="sound")}}, "its features are sound"),
    ],
)
def test_a_manifest_without_what_all_have_is_refused(corpus, changes, message):
    rewrite(corpus, **changes)
    with pytest.raises(InputError, match=f"corpus.json: {message}"):
        Corpus.open(corpus.run_dir)
