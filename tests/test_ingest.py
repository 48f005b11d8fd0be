"""Sources to corpus shards."""

import gzip
import json
import os
import re
import shutil
import struct

import numpy as np
import pytest
from conftest import command
from PIL import Image

from pipeline import ingest, records
from pipeline.records import InputError


def ingested(run_dir, source, *arguments):
    assert ingest.main(["--run_dir", str(run_dir), "--source", source, *arguments]) == 0
    return records.open_corpus(run_dir)


def examples(corpus, name):
    split = corpus.split(name)
    return [records.parse_example(record) for record in split.read(np.arange(split.rows))]


def write_images(root, classes=3, each=4, size=(6, 5)):
    rng = np.random.default_rng(0)
    for c in range(classes):
        folder = root / "alphabet" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / f"{i}.png")


def test_images_are_stored_byte_for_byte(tmp_path):
    write_images(tmp_path / "source")
    corpus = ingested(tmp_path / "run", f"images:{tmp_path / 'source'}")
    assert corpus.features == {"image": {"kind": "image", "shape": [6, 5, 1], "dtype": "uint8"}}
    everything = [example for name in records.SPLITS for example in examples(corpus, name)]
    assert len(everything) == 12
    for example in everything:
        path = tmp_path / "source" / example["id"][0].decode()
        assert example["image"] == [path.read_bytes()]
        assert example["label"] == [f"alphabet/{path.parent.name}".encode()]


def test_rows_are_ordered_by_label_and_id_and_classes_are_ranges(digits):
    corpus = records.open_corpus(digits)
    for name in records.SPLITS:
        split = corpus.split(name)
        order = [(example["label"][0], example["id"][0]) for example in examples(corpus, name)]
        assert order == sorted(order)
        assert [label.decode() for label, _ in order] == [
            split.labels[c] for c in split.class_of(np.arange(split.rows))
        ]
    by_split = [{example["id"][0] for example in examples(corpus, name)} for name in records.SPLITS]
    assert sum(map(len, by_split)) == len(set.union(*by_split)) == 1797
    assert corpus.manifest["split_rule"]["by"] == "example"
    assert all(len(corpus.split(name).labels) == 10 for name in records.SPLITS)


def test_from_20_classes_up_the_split_is_by_class(tmp_path):
    labels = np.repeat(np.arange(30), 5)
    np.savez(tmp_path / "a.npz", vectors=np.random.default_rng(0).random((150, 4)), labels=labels)
    corpus = ingested(tmp_path / "run", f"arrays:{tmp_path / 'a.npz'}")
    found = {name: set(corpus.split(name).labels) for name in records.SPLITS}
    assert [len(found[name]) for name in records.SPLITS] == [21, 3, 6]
    assert not found["train"] & found["eval"] and not found["train"] & found["validation"]


@pytest.mark.parametrize(
    "labels",
    [
        np.array([3, 3, -1, 10] * 3),
        np.array(["b", "ä", "a", "b"] * 3),
        np.array([b"x", b"y", b"x", b"y"] * 3),
        np.array([True, False] * 6),
    ],
    ids=["int", "str", "bytes", "bool"],
)
def test_any_label_type(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=np.zeros((12, 4, 4, 3), np.uint8), labels=labels)
    corpus = ingested(tmp_path / "run", f"arrays:{tmp_path / 'a.npz'}", "--eval_share", "0", "--validation_share", "0")
    text = sorted(
        {label.decode() if isinstance(label, bytes) else str(label) for label in labels.tolist()},
        key=str.encode,
    )
    assert corpus.split("train").labels == text
    assert corpus.features["image"]["shape"] == [4, 4, 3]
    assert corpus.split("eval").rows == 0


def test_arrays_keep_ids_groups_and_vectors(tmp_path):
    vectors = np.random.default_rng(0).random((8, 3)).astype(np.float32)
    np.savez(
        tmp_path / "a.npz",
        vectors=vectors,
        labels=[0, 1] * 4,
        ids=[f"id<{n}>/.." for n in range(8)],
        groups=list("aabbccdd"),
    )
    corpus = ingested(tmp_path / "run", f"arrays:{tmp_path / 'a.npz'}", "--eval_share", "0", "--validation_share", "0")
    split = corpus.split("train")
    group = split.codes("group", np.arange(8))
    for row, example in enumerate(examples(corpus, "train")):
        n = int(example["id"][0][3:4])
        np.testing.assert_array_equal(example["vector"], vectors[n])
        assert example["group"] == [b"aabbccdd"[n : n + 1]]
        same = [r for r, other in enumerate(examples(corpus, "train")) if other["group"] == example["group"]]
        assert np.flatnonzero(group == group[row]).tolist() == same


def test_copies_and_label_conflicts_are_counted(tmp_path):
    vectors = np.array([[1], [1], [2], [1], [3], [3]], np.float32)
    np.savez(tmp_path / "a.npz", vectors=vectors, labels=[0, 0, 0, 1, 1, 1])
    corpus = ingested(tmp_path / "run", f"arrays:{tmp_path / 'a.npz'}", "--eval_share", "0", "--validation_share", "0")
    entry = corpus.manifest["splits"]["train"]
    assert (entry["copies"], entry["label_conflicts"]) == (3, 1)
    assert corpus.split("train").codes("content", np.arange(6)).tolist() == [0, 0, 2, 0, 4, 4]


def test_many_shards_and_a_class_larger_than_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "SHARD_ROWS", 7)
    vectors = np.random.default_rng(0).random((40, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", vectors=vectors, labels=[0] * 30 + [1] * 10)
    corpus = ingested(tmp_path / "run", f"arrays:{tmp_path / 'a.npz'}", "--eval_share", "0", "--validation_share", "0")
    split = corpus.split("train")
    assert [shard["records"] for shard in split.shards] == [7] * 5 + [5]
    np.testing.assert_array_equal([e["vector"] for e in examples(corpus, "train")], vectors)
    assert records.main(["verify", str(tmp_path / "run")]) == 0


def test_fashion_mnist_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    for name, rows in (("train", 30), ("t10k", 10)):
        images, labels = (
            rng.integers(0, 255, (rows, 5, 4), dtype=np.uint8),
            rng.integers(0, 3, rows, dtype=np.uint8),
        )
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes()
        )
        with gzip.open(tmp_path / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">HBBI", 0, 8, 1, rows) + labels.tobytes())
    corpus = ingested(tmp_path / "run", f"fashion_mnist:{tmp_path}")
    assert sum(corpus.split(name).rows for name in records.SPLITS) == 40
    assert corpus.features["image"]["shape"] == [5, 4, 1]


def test_what_does_not_decode_is_rejected_and_counted(tmp_path):
    source = tmp_path / "source"
    write_images(source, classes=2)
    folder = source / "alphabet" / "class0"
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"not an image at all")
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:50])
    (source / "stray.png").write_bytes(whole)
    with pytest.raises(InputError, match=r"4 examples of 12 are rejected, 33.3%.*--max_rejected is 10.0%"):
        ingested(tmp_path / "run", f"images:{source}")
    assert not (tmp_path / "run" / "corpus").exists()
    corpus = ingested(tmp_path / "run", f"images:{source}", "--max_rejected", "0.4")
    reasons = {e["source"]: e["reason"] for e in map(json.loads, open(tmp_path / "run/corpus/rejected.jsonl"))}
    assert corpus.manifest["rejected"] == 4
    assert reasons["alphabet/class0/empty.png"] == "the file is empty"
    assert "not a PNG or JPEG" in reasons["alphabet/class0/text.png"]
    assert "alphabet/class0/cut.png" in reasons
    assert reasons["stray.png"] == "in no class folder"


def test_a_repeated_id_is_rejected(tmp_path):
    np.savez(tmp_path / "a.npz", vectors=np.eye(6), labels=[0, 1] * 3, ids=list("abcdea"))
    corpus = ingested(tmp_path / "run", f"arrays:{tmp_path / 'a.npz'}", "--max_rejected", ".2")
    assert corpus.manifest["rejected"] == 1
    assert "the id was there before" in (tmp_path / "run/corpus/rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "no source is called 'nothing'"),
        ("images:/nowhere/at/all", "not a directory"),
        ("images:{tmp}", "no .png"),
        ("arrays:{tmp}/none.npz", "none.npz"),
        ("arrays:{tmp}/unlabelled.npz", "needs `labels`"),
        ("arrays:{tmp}/floats.npz", "Give floats as `vectors`"),
        ("arrays:{tmp}/short.npz", "`labels` has shape"),
        ("arrays:{tmp}/objects.npz", "plain arrays"),
        ("arrays:{tmp}/empty.npz", "holds no example"),
        ("fashion_mnist:{tmp}", "train-labels-idx1-ubyte"),
        ("digits:small", "`digits` alone"),
    ],
)
def test_wrong_sources_are_refused(tmp_path, source, message):
    np.savez(tmp_path / "unlabelled.npz", vectors=np.eye(3))
    np.savez(tmp_path / "floats.npz", images=np.zeros((3, 4, 4)), labels=[0, 1, 2])
    np.savez(tmp_path / "short.npz", vectors=np.eye(3), labels=[0, 1])
    np.savez(tmp_path / "objects.npz", vectors=np.array([object()] * 3), labels=[0, 1, 2])
    np.savez(tmp_path / "empty.npz", vectors=np.zeros((0, 3)), labels=np.zeros(0, int))
    with pytest.raises(InputError, match=message):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", source.format(tmp=tmp_path)])
    assert not (tmp_path / "run" / "corpus").exists()


def test_ingesting_again_changes_nothing_and_another_source_is_refused(digits, capsys):
    assert ingest.main(["--run_dir", str(digits), "--source", "digits"]) == 0
    assert "already ingested" in capsys.readouterr().out
    with pytest.raises(InputError, match="already holds"):
        ingest.main(["--run_dir", str(digits), "--source", "digits", "--eval_share", "0.3"])


def test_the_command_on_real_images(tmp_path):
    write_images(tmp_path / "source", classes=25)
    done = command("pipeline.ingest", "--run_dir", tmp_path / "run", "--source", f"images:{tmp_path / 'source'}")
    assert done.returncode == 0, done.stderr
    assert "split by class" in done.stdout and "next: python -m pipeline.mine" in done.stdout


def test_copies_and_groups_stay_on_one_side_of_the_split(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.random((100, 3)).astype(np.float32)[np.arange(200) % 100]
    labels = np.arange(200) % 2
    np.savez(tmp_path / "copies.npz", vectors=vectors, labels=labels)
    np.savez(
        tmp_path / "groups.npz", vectors=rng.random((200, 3)), labels=labels, groups=[f"g{n % 50}" for n in range(200)]
    )
    for name, unit in (("copies", "vector"), ("groups", "group")):
        corpus = ingested(tmp_path / name, f"arrays:{tmp_path / name}.npz")
        sides = [{str(example[unit]) for example in examples(corpus, split)} for split in records.SPLITS]
        assert all(sides) and sum(map(len, sides)) == len(set.union(*sides))


def test_a_corpus_directory_without_its_manifest_is_refused_before_any_work(tmp_path):
    (tmp_path / "run" / "corpus").mkdir(parents=True)
    (tmp_path / "run" / "corpus" / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="holds files but no corpus.json"):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", "digits"])


def test_a_cut_npz_and_a_bare_npy_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", vectors=np.eye(60), labels=np.arange(60))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-300])
    np.save(tmp_path / "bare.npy", np.eye(3))
    for name in ("cut.npz", "bare.npy"):
        with pytest.raises(InputError, match=f"{name}: .*plain arrays"):
            ingest.main(["--run_dir", str(tmp_path / "run"), "--source", f"arrays:{tmp_path / name}"])


def test_a_file_name_that_is_no_utf8_is_rejected_and_does_not_end_ingest(tmp_path, capsys):
    source, run = tmp_path / "source", tmp_path / "run"
    write_images(source, each=8)
    odd = os.fsencode(source / "alphabet" / "class0") + b"/x\xff.png"
    shutil.copyfile(source / "alphabet" / "class0" / "0.png", odd)
    corpus = ingested(run, f"images:{source}")
    assert corpus.manifest["rejected"] == 1
    assert "not UTF-8" in (run / "corpus" / "rejected.jsonl").read_text()
    os.utime(odd, (0, 0))  # looked at anew: nothing has changed
    ingested(run, f"images:{source}")
    assert "already ingested" in capsys.readouterr().out


def test_ingest_prints_what_its_workers_counted(tmp_path, capsys):
    assert ingest.main(["--run_dir", str(tmp_path / "run"), "--source", "digits"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"read +1,797 examples +[\d.]+ +[\d,]+\n +write +1,797 rows", said), said
