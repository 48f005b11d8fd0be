"""Images, arrays and IDX files, and sources that are refused."""

import gzip
import os
import shutil
import struct

import numpy as np
import pytest
from corpora import read_source, write_csv, write_images

from pipeline.corpus.sources import SOURCES, arrays, open_source
from pipeline.errors import InputError


def test_every_source_that_is_listed_has_its_module():
    for usage in SOURCES:
        with pytest.raises(InputError, match=usage.partition(":")[0]):
            read_source(usage.replace("digits", "digits:none"))


def test_digits():
    found = read_source("digits")
    assert len(found) == 1797 and {example.label for example in found} == {str(n) for n in range(10)}


def test_images_are_as_in_their_files(tmp_path):
    write_images(tmp_path)
    source = open_source(f"images:{tmp_path}")
    found = read_source(source)
    assert source.kind == "image" and len(source.files) == len(found) == 12
    for example in found:
        path = tmp_path / example.id
        assert example.payload == path.read_bytes() and example.label == f"alphabet/{path.parent.name}"
        assert example.shape == (6, 5, 1)


def test_what_does_not_decode_is_rejected_with_reasons(tmp_path):
    write_images(tmp_path, classes=1)
    folder = tmp_path / "alphabet" / "class0"
    whole = (folder / "0.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"not an image at all")
    (folder / "cut.png").write_bytes(whole[:50])
    (tmp_path / "stray.png").write_bytes(whole)
    shutil.copyfile(folder / "0.png", os.fsencode(folder) + b"/x\xff.png")
    reasons = {entry.source: entry.reason for entry in read_source(f"images:{tmp_path}") if hasattr(entry, "reason")}
    assert len(reasons) == 5
    assert reasons["alphabet/class0/empty.png"] == "the file is empty"
    assert reasons["alphabet/class0/text.png"] == "no image that Pillow reads"
    assert "alphabet/class0/cut.png" in reasons and reasons["stray.png"] == "it has no label"
    assert "the file's name is not UTF-8" in reasons.values()


@pytest.mark.parametrize(
    "labels",
    [np.array([3, 3, -1, 10]), np.array(["b", "ä", "a", "b"]), np.array([b"x", b"y", b"x", b"y"]), np.array([True])],
    ids=["int", "str", "bytes", "bool"],
)  # fmt: skip
def test_any_label_type(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=np.zeros((len(labels), 4, 4, 3), np.uint8), labels=labels)
    found = read_source(f"arrays:{tmp_path / 'a.npz'}")
    assert [example.label for example in found] == [
        label.decode() if isinstance(label, bytes) else str(label) for label in labels.tolist()
    ]
    assert {example.shape for example in found} == {(4, 4, 3)}


def test_arrays_keep_ids_groups_and_vectors(tmp_path):
    vectors = np.random.default_rng(0).random((8, 3)).astype(np.float32)
    vectors[5, 1] = np.nan
    ids = [f"id<{n}>/.." for n in range(8)]
    splits = ["", "Val", "test", "train", "", "", "", "elsewhere"]
    np.savez(tmp_path / "a.npz", vectors=vectors, labels=[0, 1] * 4, ids=ids, groups=list("aabbccdd"), splits=splits)
    found = read_source(f"arrays:{tmp_path / 'a.npz'}")
    assert str(found.pop(5)) == "row 5: the vector holds NaN or infinity"
    assert "row 7: its split is 'elsewhere', expected one of train" in str(found.pop())
    assert [example.split for example in found] == [None, "validation", "eval", "train", None, None]
    for example, n in zip(found, [0, 1, 2, 3, 4, 6], strict=True):
        assert (example.id, example.group, example.label) == (ids[n], "aabbccdd"[n], str(n % 2))
        np.testing.assert_array_equal(example.payload, vectors[n])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_part_by_part(tmp_path, save, order):
    vectors = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    save(tmp_path / "a.npz", vectors=np.asarray(vectors, order=order), labels=[0] * 40)
    source = arrays.open_source(str(tmp_path / "a.npz"), part_rows=7)
    assert len(source.parts()) == (6 if save is np.savez else 1)  # what is compressed is one part
    np.testing.assert_array_equal([example.payload for example in read_source(source)], vectors)


def test_fashion_mnist_idx_files(tmp_path):
    rng = np.random.default_rng(0)
    every = []
    for name, rows in (("train", 30), ("t10k", 10)):
        images, labels = rng.integers(0, 255, (rows, 5, 4), np.uint8), rng.integers(0, 3, rows, np.uint8)
        every += labels.tolist()
        header = struct.pack(">HBB3I", 0, 8, 3, *images.shape)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        with gzip.open(tmp_path / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">HBBI", 0, 8, 1, rows) + labels.tobytes())
    found = read_source(f"fashion_mnist:{tmp_path}")
    assert [example.label for example in found] == list(map(str, every))
    assert found[0].id == "train-00000" and {example.shape for example in found} == {(5, 4, 1)}
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"nothing of that kind")
    with pytest.raises(InputError, match="is not an IDX file"):
        read_source(f"fashion_mnist:{tmp_path}")


@pytest.mark.parametrize("labels", [0, 29, 31])
def test_idx_files_that_do_not_belong_together_are_refused(tmp_path, labels):
    for name, rows in (("train", labels), ("t10k", 30)):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 30, 5, 4) + bytes(600))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, rows) + bytes(rows))
    message = f"train-images-idx3-ubyte holds 30 images, .*/train-labels-idx1-ubyte holds {labels} labels"
    with pytest.raises(InputError, match=message):
        read_source(f"fashion_mnist:{tmp_path}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "no source is called 'nothing'"),
        ("imges:{tmp}", "did you mean images?"),
        ("images:/nowhere/at/all", "not a directory"),
        ("images:{tmp}", "no folder with files in it"),
        ("arrays:{tmp}/none.npz", "none.npz"),
        ("arrays:{tmp}/bare.npy", "plain arrays"),
        ("arrays:{tmp}/cut.npz", "plain arrays"),
        ("arrays:{tmp}/damaged.npz", "Bad CRC-32"),
        ("arrays:{tmp}/unlabelled.npz", "needs `labels`"),
        ("arrays:{tmp}/floats.npz", "Give floats as `vectors`"),
        ("arrays:{tmp}/short.npz", "`labels` has shape"),
        ("arrays:{tmp}/more.npz", "more.npz holds group, labels, vectors. Give one of images or vectors, and of"),
        ("arrays:{tmp}/one-image.npz", r"images are uint8 \[n, height, width\] .*; found uint8 \[\]"),
        ("arrays:{tmp}/one-number.npz", r"vectors are numbers \[n, dim\]; found float64 \[\]"),
        ("arrays:{tmp}/objects.npz", "vectors are numbers"),
        ("arrays:{tmp}/object-labels.npz", "plain arrays"),
        ("fashion_mnist:{tmp}", "train-images-idx3-ubyte"),
        ("digits:small", "`digits` alone"),
        ("csv:{tmp}/none.csv", "no such file"),
        ("csv:{tmp}/t.csv", r"has body, category. Say which of them is the payload"),
        ("csv:{tmp}/t.csv,text=body", r"Say which of them is the label"),
        ("csv:{tmp}/t.csv,text=bodi,label=category", "there is no 'bodi' for text=; did you mean body?"),
        ("csv:{tmp}/t.csv,lable=category", "lable= means nothing; did you mean label?"),
        ("csv:{tmp}/twice.csv", "'text' is there 2 times"),
        ("csv:{tmp}/t[.2]*csv,text=body,label=category", "t2.csv: there is no 'body' for text=; there are a, category"),
        ("csv:{tmp}/empty.csv", "the first line must name the columns"),
        ("csv:{tmp}/t.csv,text=body,label=category,sep=::", "one character"),
        ("csv:{tmp}/t.csv,text=body,label=category,encoding=none-such", "is unknown"),
        ("csv:{tmp}/whole.npz", r"whole.npz is compressed \(zip\)"),
        ("sql:{tmp}/q.sql,db={tmp}/none.db", "no such file"),
        ("sql:{tmp}/t.csv", "t.csv must hold one SELECT"),
        ("jsonl:{tmp}/t.csv", "t.csv: none of its first 1,000 lines is a JSON object"),
        ("jsonl:{tmp}/utf16.jsonl", "utf16.jsonl is UTF-16, expected UTF-8. Make it that: iconv"),
        ("parquet:{tmp}/t.csv,label=category", "is not a Parquet file"),
        ("tfrecord:{tmp}/zipped,label=x", "zipped: neither TFRecords nor compressed ones"),
        ("tfrecord:{tmp}/t.csv,label=x", "record 0 at byte 0"),
    ],
)  # fmt: skip
def test_wrong_sources_are_refused(tmp_path, source, message):
    np.savez(tmp_path / "unlabelled.npz", vectors=np.eye(3))
    np.savez(tmp_path / "floats.npz", images=np.zeros((3, 4, 4)), labels=[0, 1, 2])
    np.savez(tmp_path / "short.npz", vectors=np.eye(3), labels=[0, 1])
    np.savez(tmp_path / "more.npz", vectors=np.eye(3), labels=[0, 1, 2], group=[0, 0, 1])
    np.savez(tmp_path / "one-image.npz", images=np.uint8(3), labels=[0])
    np.savez(tmp_path / "one-number.npz", vectors=3.0, labels=[0])
    np.savez(tmp_path / "objects.npz", vectors=np.array([[object()]] * 3), labels=[0, 1, 2])
    np.savez(tmp_path / "object-labels.npz", vectors=np.eye(3), labels=np.array([object()] * 3))
    np.savez(tmp_path / "whole.npz", vectors=np.ones((500, 8)), labels=np.zeros(500))
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(data[:-300])
    data[3000] ^= 1
    (tmp_path / "damaged.npz").write_bytes(data)
    np.save(tmp_path / "bare.npy", np.eye(3))
    write_csv(tmp_path / "t.csv", [["body", "category"], ["x", "y"]])
    write_csv(tmp_path / "t2.csv", [["a", "category"], ["x", "y"]])
    write_csv(tmp_path / "twice.csv", [["text", "text", "label"], [1, 2, 3]])
    if "2" not in source:
        (tmp_path / "t2.csv").unlink()
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "utf16.jsonl").write_text('{"text": "one", "label": "a"}\n', "utf-16")
    (tmp_path / "q.sql").write_text("SELECT 1")
    (tmp_path / "zipped").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(InputError, match=message):
        read_source(source.format(tmp=tmp_path))
