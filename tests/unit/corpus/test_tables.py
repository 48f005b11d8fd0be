"""Fields with names: CSV, Parquet, TFRecords and prepared data sets."""

import csv
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from corpora import png, read_source, write_csv

from pipeline.corpus.sources import open_source
from pipeline.corpus.sources.source import Example, Rejected
from pipeline.errors import InputError
from pipeline.files import tfrecords

DATA = Path(__file__).parents[2] / "data"


def test_texts_of_a_csv_file_byte_for_byte():
    source = open_source(f"csv:{DATA / 'banking77.csv'},label=category")
    with open(DATA / "banking77.csv", newline="", encoding="utf-8") as file:
        expected = [(row["category"], row["text"].encode()) for row in csv.DictReader(file)]
    assert [(example.label, example.payload) for example in read_source(source)] == expected
    assert source.kind == "text" and source.files == [DATA / "banking77.csv"]


def test_a_csv_file_is_cut_between_rows_however_its_cells_look(tmp_path):
    """Line ends and quotes inside cells, a byte order mark, an empty line, in several parts."""
    texts = ['two\nlines, "quoted"', 'a 5" pipe', "semi;colon", "ünïcode\u2028mark", "x" * 300_000, "plain", "\r\nlate"]
    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "text", "label"])
        for number in range(20_000):
            text = texts[number % 7] if number < 60 else "plain" * 200
            writer.writerow([number, f"{text} {number}", f"c{number % 3}"])
            if number == 30:
                file.write("\r\n")
    source = open_source(f"csv:{path}")
    assert len(source.parts()) > 2
    found = read_source(source)
    assert [example.id for example in found] == [f"t.csv:{n:07d}" for n in range(20_000)]
    assert [example.label for example in found] == [f"c{n % 3}" for n in range(20_000)]
    assert [example.payload.decode() for example in found[:60]] == [f"{texts[n % 7]} {n}" for n in range(60)]


def test_paths_vectors_ids_and_groups_of_a_csv_file(tmp_path):
    (tmp_path / "i").mkdir()
    for number in range(6):
        (tmp_path / "i" / f"{number}.png").write_bytes(png(number))
    rows = [[f"i/{number}.png", number % 2, f"g{number // 2}", f"[{number}.5, 2 3]"] for number in range(6)]
    write_csv(tmp_path / "t.tsv", [["file", "label", "shot", "vec"], *rows], "\t")
    source = open_source(f"csv:{tmp_path}/*.tsv,path=file,group=shot")
    assert source.kind == "image" and source.files is None  # the images may change
    assert [(example.id, example.payload, example.group) for example in read_source(source)] == [
        (f"i/{number}.png", png(number), f"g{number // 2}") for number in range(6)
    ]
    for number, example in enumerate(read_source(f"csv:{tmp_path}/t.tsv,vector=vec,id=file")):
        assert example.id == f"i/{number}.png"
        np.testing.assert_array_equal(example.payload, [number + 0.5, 2, 3])


def test_bad_rows_are_rejected_with_reasons(tmp_path):
    write_csv(tmp_path / "t.csv", [["text", "label"], ["t", "a"], ["only one"], ["", "a"], ["no label", ""]])
    with open(tmp_path / "t.csv", "ab") as file:
        file.write(b"\xff\xfe,a\r\n")
    found = read_source(f"csv:{tmp_path / 't.csv'}")
    assert [str(entry) for entry in found if isinstance(entry, Rejected)] == [
        "t.csv: line 3: 1 cells, the header has 2",
        "t.csv: line 6: it is not UTF-8; encoding=latin-1, or another name, says what it is",
        "t.csv:0000001: the text is empty",
        "t.csv:0000002: it has no label",
    ]
    assert [example.id for example in found if isinstance(example, Example)] == ["t.csv:0000000"]


@pytest.mark.parametrize("kind", ["text", "vector", "image", "hugging_face"])
def test_parquet(tmp_path, kind):
    """Several files, several row groups: the payload comes back as it is."""
    values = {
        "text": [f"text {number}" for number in range(50)],
        "vector": [[float(number), 1.0] for number in range(50)],
        "image": [png(number) for number in range(50)],
        "hugging_face": [{"bytes": png(number), "path": None} for number in range(50)],
    }[kind]
    for half in (0, 1):
        part = slice(25 * half, 25 * half + 25)
        labels = [number % 4 for number in range(50)][part]
        table = pa.table({"payload": values[part], "label": labels, "unused": [None] * 25})
        pq.write_table(table, tmp_path / f"{half}.parquet", row_group_size=10)
    name = "image" if kind == "hugging_face" else kind
    source = open_source(f"parquet:{tmp_path}/?.parquet,{name}=payload")
    assert source.kind == name and len(source.parts()) == 6
    found = read_source(source)
    assert len(found) == 50
    for number, example in enumerate(found):
        assert example.id == f"{number // 25}.parquet:{number % 25:07d}" and example.label == str(number % 4)
        if kind == "vector":
            np.testing.assert_array_equal(example.payload, values[number])
        else:
            assert example.payload == (f"text {number}".encode() if kind == "text" else png(number))


def write_omniglot(directory):
    """Omniglot's extract as TFRecords in two folders, with features that nobody declared."""
    with zipfile.ZipFile(DATA / "omniglot.zip") as file:
        drawings = [(name, file.read(name)) for name in sorted(file.namelist())]
    for shard in (0, 1):
        (directory / f"{shard}").mkdir()
        examples = [
            {"png": [data], "class": [os.path.dirname(name).encode()], "label": np.array([7]), "note": [b"unused"]}
            for name, data in drawings[shard::2]
        ]
        tfrecords.write_records(directory / f"{shard}" / "part.tfrecord", map(tfrecords.make_example, examples))
    return drawings


def test_tfrecords(tmp_path):
    drawings = write_omniglot(tmp_path)
    found = {example.id: example for example in read_source(f"tfrecord:{tmp_path}/*/*.tfrecord,image=png,label=class")}
    assert len(found) == len(drawings)
    for number, (name, data) in enumerate(drawings):
        example = found[f"{number % 2}/part.tfrecord:{number // 2:07d}"]
        assert (example.payload, example.label, example.shape) == (data, os.path.dirname(name), (105, 105, 1))


def test_a_record_that_is_no_example_of_that_kind_is_rejected(tmp_path):
    good = tfrecords.make_example({"text": [b"t"], "label": [b"a"]})
    two = tfrecords.make_example({"text": [b"t", b"u"], "label": [b"a"]})
    tfrecords.write_records(tmp_path / "a.tfrecord", [good, two, b"\xff\xff\xff"])
    kept, *rejected = read_source(f"tfrecord:{tmp_path}/a.tfrecord")
    assert kept.payload == b"t" and "text has 2 values, expected one" in str(rejected[0])
    assert "a.tfrecord:0000002: not a tf.train.Example" in str(rejected[1])


def test_a_damaged_tfrecord_is_refused_and_names_the_record(tmp_path):
    record = tfrecords.make_example({"text": [b"t"], "label": [b"a"]})
    tfrecords.write_records(tmp_path / "a.tfrecord", [record] * 3)
    data = bytearray((tmp_path / "a.tfrecord").read_bytes())
    data[-8] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(data)
    with pytest.raises(InputError, match=r"a.tfrecord: the record at byte \d+ is corrupt"):
        read_source(f"tfrecord:{tmp_path}/*.tfrecord")


def test_a_prepared_tfds_data_set(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(5, 4, 1)), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="shapes", version="1.2.0", data_dir=str(tmp_path / "shapes/1.2.0"), module_name=""
    )
    (tmp_path / "shapes/1.2.0").mkdir(parents=True)
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=20)
    writer.initialize_splits(["train", "test"])
    for number in range(40):
        example = {"image": np.full((5, 4, 1), number, np.uint8), "label": number % 2}
        writer.add_examples({"train" if number < 30 else "test": [example]})
    writer.close_all()
    source = open_source(f"tfds:shapes,data_dir={tmp_path}")
    assert source.kind == "image" and source.files
    found = read_source(source)
    assert {example.shape for example in found} == {(5, 4, 1)}
    assert sum(example.label == "dog" for example in found) == 20
    values = [int(tf.io.decode_png(example.payload).numpy().max()) for example in found]
    assert sorted(values) == list(range(40)) and all(example.id.startswith("shapes-") for example in found)
    with pytest.raises(InputError, match=r"tfds:nothing.*: no prepared data set of that name"):
        open_source(f"tfds:nothing,data_dir={tmp_path}")
