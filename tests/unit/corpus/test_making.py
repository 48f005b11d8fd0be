"""The whole job: what a corpus holds, what is refused, what a changed source gets."""

import json

import numpy as np
import pytest
from corpora import NO_HOLD_OUT, everything, examples, ingested, make, png, write_csv, write_images

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS, Feature
from pipeline.corpus.options import IngestOptions
from pipeline.errors import InputError
from pipeline.files.layout import Run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("digits") / "run"
    make(run_dir, "digits")
    return run_dir


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_data_has_the_fingerprint_it_always_had(digits):
    assert Corpus.open(digits).fingerprint == "1a70b35217e83fd481e2581f4b470f1b9d054c8c7f3e452780115851f6749dc5"


def test_a_share_that_is_a_whole_number_is_a_share(tmp_path):
    """Read back it is 0.0, and its fingerprint was another than that of 0."""
    make(tmp_path, "digits", validation_share=0, eval_share=0)
    assert Corpus.open(tmp_path).split("train").rows == 1797


def test_rows_are_ordered_by_label_and_id_and_classes_are_ranges(digits):
    corpus = Corpus.open(digits)
    for name in SPLITS:
        split = corpus.split(name)
        order = [(example["label"][0], example["id"][0]) for example in examples(corpus, name)]
        assert order == sorted(order)
        assert [label.decode() for label, _ in order] == [
            split.labels[c] for c in split.class_of(np.arange(split.rows))
        ]
    by_split = [{example["id"][0] for example in examples(corpus, name)} for name in SPLITS]
    assert sum(map(len, by_split)) == len(set.union(*by_split)) == 1797
    assert corpus.manifest.split_rule.by == "example"
    assert all(len(corpus.split(name).labels) == 10 for name in SPLITS)


def test_images_are_stored_byte_for_byte(tmp_path):
    write_images(tmp_path / "source")
    corpus = ingested(tmp_path / "run", f"images:{tmp_path / 'source'}")
    assert corpus.manifest.features == {"image": Feature(kind="image", shape=(6, 5, 1), dtype="uint8")}
    found = everything(corpus)
    assert len(found) == 12
    for example in found:
        path = tmp_path / "source" / example["id"][0].decode()
        assert example["image"] == [path.read_bytes()]
        assert example["label"] == [f"alphabet/{path.parent.name}".encode()]


def test_vectors_groups_and_copies(tmp_path):
    vectors = np.array([[1], [1], [2], [1], [3], [3]], np.float32)
    np.savez(tmp_path / "a.npz", vectors=vectors, labels=[0, 0, 0, 1, 1, 1], groups=list("aabbcc"))
    made = make(tmp_path / "run", f"arrays:{tmp_path / 'a.npz'}", **NO_HOLD_OUT)
    assert (made.rows["train"], made.rows["eval"], made.copies, made.label_conflicts) == (6, 0, 3, 1)
    assert "3 copies of another row's payload, 1 of them under another label" in str(made)
    corpus = Corpus.open(tmp_path / "run")
    split = corpus.split("train")
    assert split.codes("content", np.arange(6)).tolist() == [0, 0, 2, 0, 4, 4]
    assert split.codes("group", np.arange(6)).tolist() == [0, 0, 1, 1, 2, 2]
    for example, vector, group in zip(examples(corpus, "train"), vectors, b"aabbcc", strict=True):
        np.testing.assert_array_equal(example["vector"], vector)
        assert example["group"] == [bytes([group])]


def test_many_shards_and_a_class_larger_than_a_shard(tmp_path):
    vectors = np.random.default_rng(0).random((40, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", vectors=vectors, labels=[0] * 30 + [1] * 10)
    corpus = ingested(tmp_path / "run", f"arrays:{tmp_path / 'a.npz'}", shard_rows=7, **NO_HOLD_OUT)
    split = corpus.split("train")
    assert [shard.records for shard in split.shards] == [7] * 5 + [5]
    np.testing.assert_array_equal([e["vector"] for e in examples(corpus, "train")], vectors)
    split.check()


def test_too_much_that_is_rejected_is_refused_and_what_is_rejected_is_listed(tmp_path):
    rows = [[f"i{n % 10}", f"t{n}", "a"] for n in range(11)]
    write_csv(tmp_path / "t.csv", [["id", "text", "label"], *rows, ["i10", "", "a"]])
    source, run = f"csv:{tmp_path / 't.csv'}", Run(tmp_path / "run")
    with pytest.raises(InputError, match=r"2 examples of 12 are rejected, 16.7%, --max_rejected is 10.0%.*: t.csv:00"):
        make(run.path, source, **NO_HOLD_OUT)
    assert not run.corpus.exists() and len(lines(*run.staging.rglob("rejected.jsonl"))) == 2
    made = make(run.path, source, max_rejected=0.2, **NO_HOLD_OUT)
    assert made.rejected == 2 and f"2 rejected, with reasons in {run.rejected}" in str(made)
    assert lines(run.rejected) == [
        {"source": "t.csv:0000011", "reason": "the text is empty"},
        {"source": "i0", "reason": "the id was there before; the first is kept"},
    ]
    assert not run.staging.exists()


def test_a_source_without_examples_is_refused(tmp_path):
    write_csv(tmp_path / "t.csv", [["text", "label"], ["", "a"]])
    with pytest.raises(InputError, match=r"holds no example; 1 were rejected; t.csv:0000000: the text is empty"):
        make(tmp_path / "run", f"csv:{tmp_path / 't.csv'}")
    np.savez(tmp_path / "empty.npz", vectors=np.zeros((0, 3)), labels=np.zeros(0, int))
    with pytest.raises(InputError, match="holds no example; 0 were rejected"):
        make(tmp_path / "run", f"arrays:{tmp_path / 'empty.npz'}")
    assert not (tmp_path / "run" / "corpus").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_share": 1.0}, r"--eval_share must be in \[0, 1\); found 1.0"),
        ({"validation_share": -0.1}, "--validation_share must be in"),
        ({"eval_share": 0.5, "validation_share": 0.5}, "leave nothing to train on"),
        ({"max_rejected": 2.0}, "--max_rejected must be in"),
    ],
)
def test_options_out_of_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IngestOptions(source=("digits",), **options)


def test_ingesting_again_changes_nothing_and_another_source_is_refused(digits):
    before = {path.name: path.stat().st_mtime_ns for path in (digits / "corpus").iterdir()}
    made = make(digits, "digits")
    assert made.already and str(made).startswith("already ingested")
    with pytest.raises(InputError, match="already holds digits with .*'eval_share': 0.2.*asked for digits with .*0.3"):
        make(digits, "digits", eval_share=0.3)
    assert {path.name: path.stat().st_mtime_ns for path in (digits / "corpus").iterdir()} == before


def test_a_corpus_directory_without_its_manifest_is_refused_before_any_work(tmp_path):
    (tmp_path / "run" / "corpus").mkdir(parents=True)
    (tmp_path / "run" / "corpus" / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="holds files but no corpus.json"):
        make(tmp_path / "run", "digits")


def test_a_half_made_corpus_is_made_again(tmp_path):
    run = Run(tmp_path / "run")
    for path in (run.staging / "parts.jsonl", run.corpus / "left.tfrecord"):
        path.parent.mkdir(parents=True)
        path.write_text("half")
    make(run.path, "digits")
    assert not (run.corpus / "left.tfrecord").exists() and not run.staging.exists()


# ---- A source that changed. ----


def test_a_source_whose_files_changed_is_refused_and_the_corpus_stays(tmp_path):
    rows = [[f"i{n}", f"text {n}", f"c{n % 2}"] for n in range(30)]
    source, run = tmp_path / "t.csv", Run(tmp_path / "run")
    write_csv(source, [["id", "text", "label"], *rows])
    corpus = ingested(run.path, f"csv:{source}")
    assert make(run.path, f"csv:{source}").compared
    write_csv(source, [["id", "text", "label"], *rows[:-1]])
    with pytest.raises(InputError, match="other names, sizes or times .* --run_dir NEW"):
        make(run.path, f"csv:{source}")
    assert Corpus.open(run.path).fingerprint == corpus.fingerprint


def test_that_images_behind_paths_are_not_compared_is_said(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    write_csv(tmp_path / "t.csv", [["path", "label"], *([f"{n}.png", n % 2] for n in range(8))])
    assert "not looked at" not in str(make(tmp_path / "run", f"csv:{tmp_path}/t.csv"))
    made = make(tmp_path / "run", f"csv:{tmp_path}/t.csv")
    assert made.already and "whether what it names changed since was not looked at" in str(made)
