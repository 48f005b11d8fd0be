"""Tables, TFRecords and prepared data sets to corpora and on to packs; what a changed source gets."""

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import read_packs
from PIL import Image
from test_ingest import examples, ingested

from pipeline import ingest, mine, records, sources
from pipeline.records import InputError
from trainer import evaluate, train

DATA = Path(__file__).parent / "data"
NO_HOLD_OUT = ["--eval_share", "0", "--validation_share", "0"]


def everything(corpus):
    return [example for name in records.SPLITS for example in examples(corpus, name)]


def png(value, size=(4, 4)):
    buffer = io.BytesIO()
    Image.fromarray(np.full(size, value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_csv(path, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def test_texts_of_a_csv_file_are_rows_byte_for_byte(tmp_path):
    corpus = ingested(tmp_path / "run", f"csv:{DATA / 'banking77.csv'},label=category")
    assert corpus.features == {"text": {"kind": "text", "shape": [], "dtype": "string"}}
    with open(DATA / "banking77.csv", newline="", encoding="utf-8") as file:
        expected = sorted((row["category"], row["text"]) for row in csv.DictReader(file))
    found = sorted((e["label"][0].decode(), e["text"][0].decode()) for e in everything(corpus))
    assert found == expected and corpus.manifest["split_rule"]["by"] == "class"


def test_a_csv_file_is_cut_between_rows_however_its_cells_look(tmp_path, monkeypatch):
    """Line ends and quotes inside cells, a byte order mark, an empty line; any size of parts gives the same corpus."""
    texts = ['two\nlines, "quoted"', 'a 5" pipe', "semi;colon", "ünïcode\u2028mark", "x" * 300_000, "plain", "\r\nlate"]
    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["note", "text", "label"])
        for number in range(60):
            writer.writerow([number, f"{texts[number % 7]} {number}", f"c{number % 3}"])
            if number == 30:
                file.write("\r\n")
    found = []
    for size in (1, 700, 1 << 23):
        monkeypatch.setattr(sources, "PART_BYTES", size)
        assert (len(sources.SOURCES["csv"].parts(str(path))) > 1) is (size < 1000)
        corpus = ingested(tmp_path / f"run{size}", f"csv:{path}")
        found.append(corpus.fingerprint)
        assert sorted(e["text"][0].decode() for e in everything(corpus)) == sorted(
            f"{texts[number % 7]} {number}" for number in range(60)
        )
    assert len(set(found)) == 1


def test_paths_vectors_ids_and_groups_of_a_csv_file(tmp_path):
    (tmp_path / "i").mkdir()
    for number in range(6):
        (tmp_path / "i" / f"{number}.png").write_bytes(png(number))
    head = ["file", "label", "shot", "vec"]
    rows = [[f"i/{number}.png", number % 2, f"g{number // 2}", f"[{number}.5, 2 3]"] for number in range(6)]
    write_csv(tmp_path / "t.tsv", [head, *rows], "\t")
    corpus = ingested(tmp_path / "images", f"csv:{tmp_path}/*.tsv,path=file,group=shot", *NO_HOLD_OUT)
    assert {e["id"][0].decode(): (e["image"][0], e["group"][0]) for e in everything(corpus)} == {
        f"i/{number}.png": (png(number), f"g{number // 2}".encode()) for number in range(6)
    }
    corpus = ingested(tmp_path / "vectors", f"csv:{tmp_path}/t.tsv,vector=vec,id=file", *NO_HOLD_OUT)
    for example in everything(corpus):
        np.testing.assert_array_equal(example["vector"], [int(example["id"][0][2:3]) + 0.5, 2, 3])


@pytest.mark.parametrize("kind", ["text", "vector", "image", "hugging_face"])
def test_parquet(tmp_path, kind):
    """Several files, several row groups: the payload comes back as it is."""
    values = {
        "text": [f"text {number}" for number in range(50)],
        "vector": [[float(number), 1.0] for number in range(50)],
        "image": [png(number) for number in range(50)],
        "hugging_face": [{"bytes": png(number), "path": None} for number in range(50)],
    }[kind]
    labels = [number % 4 for number in range(50)]
    for half in (0, 1):
        part = slice(25 * half, 25 * half + 25)
        table = pa.table({"payload": values[part], "label": labels[part], "unused": [None] * 25})
        pq.write_table(table, tmp_path / f"{half}.parquet", row_group_size=10)
    name = "image" if kind == "hugging_face" else kind
    corpus = ingested(tmp_path / "run", f"parquet:{tmp_path}/?.parquet,{name}=payload", *NO_HOLD_OUT)
    assert len(sources.SOURCES["parquet"].parts(f"{tmp_path}/?.parquet,{name}=payload")) == 6
    found = {e["id"][0].decode(): e for e in everything(corpus)}
    for number in range(50):
        example = found[f"{number // 25}.parquet:{number % 25:07d}"]
        assert example["label"] == [str(number % 4).encode()]
        if kind == "vector":
            np.testing.assert_array_equal(example["vector"], values[number])
        else:
            assert example[name] == [{"text": str(values[number]).encode()}.get(kind, png(number))]


def test_bad_rows_are_rejected_with_reasons(tmp_path):
    rows = [["text", "label"], *([f"t{n}", "a"] for n in range(20)), ["only one"], ["", "a"], ["no label", ""]]
    write_csv(tmp_path / "t.csv", rows)
    with open(tmp_path / "t.csv", "ab") as file:
        file.write(b"\xff\xfe,a\r\n")
    corpus = ingested(tmp_path / "run", f"csv:{tmp_path / 't.csv'}", "--max_rejected", ".5", *NO_HOLD_OUT)
    rejected = [json.loads(line) for line in (tmp_path / "run/corpus/rejected.jsonl").read_text().splitlines()]
    assert {entry["source"]: entry["reason"] for entry in rejected} == {
        "t.csv:0000020": "1 cells, the header has 2",
        "t.csv:0000021": "the text is empty",
        "t.csv:0000022": "it has no label",
        "t.csv:0000023": "its text is not UTF-8",
    }
    assert corpus.split("train").rows == 20


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("csv:{tmp}/none.csv", "no such file"),
        ("csv:{tmp}/t.csv", r"has body, category. Say which of them is the payload"),
        ("csv:{tmp}/t.csv,text=body", r"Say which of them is the label"),
        ("csv:{tmp}/t.csv,text=bodi,label=category", "there is no 'bodi' for text=; did you mean body?"),
        ("csv:{tmp}/t.csv,lable=category", "lable= means nothing; did you mean label?"),
        ("csv:{tmp}/empty.csv", "the first line must name the columns"),
        ("csv:{tmp}/open.csv,label=b,text=a", "open.csv: line 3: unexpected end of data"),
        ("csv:{tmp}/twice.csv", "each once; found"),
        ("parquet:{tmp}/t.csv,label=category", "is not a Parquet file"),
        ("tfrecord:{tmp}/zipped,label=x", "gunzip"),
        ("tfrecord:{tmp}/t.csv,label=x", "record 0 at byte 0"),
        ("tfds:nothing,data_dir={tmp}", "no prepared data set in"),
        ("imges:{tmp}", "did you mean images?"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, source, message):
    write_csv(tmp_path / "t.csv", [["body", "category"], ["x", "y"]])
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "open.csv").write_text('a,b\n1,2\n"3,4\n')
    (tmp_path / "twice.csv").write_text("text,text,label\n1,2,3\n")
    (tmp_path / "zipped").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(InputError, match=message):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", source.format(tmp=tmp_path)])
    assert not (tmp_path / "run" / "corpus").exists()


def test_a_damaged_tfrecord_is_refused_and_names_the_record(tmp_path):
    record = records.make_example({"text": [b"t"], "label": [b"a"]})
    records.write_records(tmp_path / "a.tfrecord", [record] * 3)
    data = bytearray((tmp_path / "a.tfrecord").read_bytes())
    data[-8] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(data)
    with pytest.raises(InputError, match=r"a.tfrecord: the record at byte \d+ is corrupt"):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", f"tfrecord:{tmp_path}/*.tfrecord"])


@pytest.fixture(scope="module")
def tfrecords(tmp_path_factory):
    """Omniglot's extract as TFRecords, with features that nobody declared."""
    directory = tmp_path_factory.mktemp("tfrecords")
    with zipfile.ZipFile(DATA / "omniglot.zip") as file:
        drawings = [(name, file.read(name)) for name in sorted(file.namelist())]
    for shard in (0, 1):
        (directory / f"{shard}").mkdir()
        records.write_records(
            directory / f"{shard}" / "part.tfrecord",
            [
                records.make_example(
                    {
                        "png": [data],
                        "class": [os.path.dirname(name).encode()],
                        "label": np.array([7]),  # not what we call so
                        "box": np.array([number, 1, 2, 3], np.int64),
                        "score": np.array([number / 2], np.float32),
                        "tags": [b"tag"] * (number % 3),
                        "note": [f"note {number}".encode()],
                        "pair": [b"%d" % number, b"\0"],
                    }
                )
                for number, (name, data) in enumerate(drawings)
                if number % 2 == shard
            ],
        )
    return directory


def test_tfrecords_reach_packs_with_the_features_nobody_declared(tfrecords, tmp_path):
    run = tmp_path / "run"
    corpus = ingested(run, f"tfrecord:{tfrecords}/*/*.tfrecord,image=png,label=class")
    assert corpus.features == {
        "image": {"kind": "image", "shape": [105, 105, 1], "dtype": "uint8"},
        "box": {"kind": "extra", "shape": [4], "dtype": "int64"},
        "note": {"kind": "extra", "shape": [], "dtype": "bytes"},
        "pair": {"kind": "extra", "shape": [2], "dtype": "bytes"},
        "score": {"kind": "extra", "shape": [], "dtype": "float32"},
        "source/label": {"kind": "extra", "shape": [], "dtype": "int64"},
        "tags": {"kind": "extra", "shape": [None], "dtype": "bytes"},
    }
    for example in everything(corpus):
        number = int(example["box"][0])
        assert example["note"] == [f"note {number}".encode()] and len(example.get("tags", [])) == number % 3
        assert example["id"] == [f"{number % 2}/part.tfrecord:{number // 2:07d}".encode()]
    assert train.main(["--run_dir", str(run), "--init"]) == 0
    assert mine.main(["--run_dir", str(run)]) == 0
    split = corpus.split("train")
    for pack in read_packs(run):
        rows = [records.parse_example(record) for record in split.read(pack["row"])]
        np.testing.assert_array_equal(pack["box"].reshape(-1, 4), [row["box"] for row in rows])
        np.testing.assert_array_equal(pack["score"], [row["score"][0] for row in rows])
        assert pack["note"] == [row["note"][0] for row in rows]
        assert pack["pair"] == [text for row in rows for text in row["pair"]]
        assert pack["image"] == [row["image"][0] for row in rows] and "tags" not in pack
    assert train.main(["--run_dir", str(run)]) == 0


def test_a_feature_of_two_types_is_refused(tmp_path):
    both = [{"text": [b"a"], "label": [b"x"], "n": n} for n in (np.array([1]), [b"one"])]
    records.write_records(tmp_path / "a.tfrecord", map(records.make_example, both))
    with pytest.raises(InputError, match="feature 'n' is int64 in some examples and bytes in others"):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", f"tfrecord:{tmp_path}/a.tfrecord"])


def test_a_prepared_tfds_data_set(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")
    tf = records.import_tensorflow()
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
    corpus = ingested(tmp_path / "run", f"tfds:shapes,data_dir={tmp_path}")
    found = everything(corpus)
    assert corpus.features["image"]["shape"] == [5, 4, 1] and len(found) == 40
    assert sum(e["label"] == [b"dog"] for e in found) == 20
    values = sorted(int(tf.io.decode_png(e["image"][0]).numpy().max()) for e in found)
    assert values == list(range(40)) and all(e["id"][0].startswith(b"shapes-") for e in found)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_row_by_row(tmp_path, monkeypatch, save):
    monkeypatch.setattr(sources, "PART_ROWS", 7)
    vectors = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    save(tmp_path / "a.npz", vectors=vectors, labels=[0] * 40)
    found = [
        example
        for part in sources.SOURCES["arrays"].parts(str(tmp_path / "a.npz"))
        for example in sources.SOURCES["arrays"].read(part)
    ]
    np.testing.assert_array_equal([example.payload for example in found], vectors)
    save(tmp_path / "f.npz", vectors=np.asfortranarray(vectors), labels=[0] * 40)
    parts = sources.SOURCES["arrays"].parts(str(tmp_path / "f.npz"))
    if save is np.savez:
        found = [example for part in parts for example in sources.SOURCES["arrays"].read(part)]
        np.testing.assert_array_equal([example.payload for example in found], vectors)
    else:
        with pytest.raises(InputError, match="Fortran order"):
            list(sources.SOURCES["arrays"].read(parts[0]))


def test_a_damaged_array_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", vectors=np.ones((500, 8)), labels=np.zeros(500))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[3000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="Bad CRC-32"):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", f"arrays:{tmp_path / 'a.npz'}"])


# ---- A source that changed. ----


def test_a_changed_source_says_what_came_and_went(tmp_path, capsys):
    rows = [[f"i{n}", f"text {n}", f"c{n % 2}"] for n in range(30)]
    source = tmp_path / "t.csv"
    write_csv(source, [["id", "text", "label"], *rows])
    corpus = ingested(tmp_path / "run", f"csv:{source}")
    os.utime(source, (1, 1))
    assert ingested(tmp_path / "run", f"csv:{source}").fingerprint == corpus.fingerprint  # only its time is another
    assert "already ingested" in capsys.readouterr().out
    rows = [["i0", "another text", "c0"], ["i1", "text 1", "c7"], *rows[2:-1], ["i98", "x", "c0"], ["i99", "y", "c1"]]
    write_csv(source, [["id", "text", "label"], *rows])
    with pytest.raises(InputError, match=r"2 came \(i98, i99\); 1 went \(i29\); 2 changed \(i\d+, i\d+\)") as raised:
        ingested(tmp_path / "run", f"csv:{source}")
    assert "--run_dir NEW" in str(raised.value)
    listed = [json.loads(line) for line in (tmp_path / "run/source_changes.jsonl").read_text().splitlines()]
    assert {(entry["id"], entry["what"]) for entry in listed} == {
        ("i98", "came"), ("i99", "came"), ("i29", "went"), ("i0", "changed"), ("i1", "changed")
    }  # fmt: skip
    assert records.open_corpus(tmp_path / "run").fingerprint == corpus.fingerprint
    assert not (tmp_path / "run" / "corpus.check").exists()


def test_an_image_that_changed_behind_its_path_is_found(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    write_csv(tmp_path / "t.csv", [["path", "label"], *([f"{n}.png", n % 2] for n in range(8))])
    ingested(tmp_path / "run", f"csv:{tmp_path}/t.csv")
    (tmp_path / "3.png").write_bytes(png(77))
    with pytest.raises(InputError, match=r"1 changed \(3.png\)"):
        ingested(tmp_path / "run", f"csv:{tmp_path}/t.csv")


# ---- End to end. ----


def loop(run, source):
    """Ingest, warm-up, mine, train. Returns MAP@R on unseen classes of the untrained network and after each step."""
    corpus = ingested(run, source)
    assert corpus.manifest["split_rule"]["by"] == "class"
    found = []
    for call in (
        (train, "--init"), (train, "--online"), (mine,), (train, "--epochs", "2"),
    ):  # fmt: skip
        assert call[0].main(["--run_dir", str(run), *call[1:]]) == 0
        number = records.newest_round(run, records.checkpoint_path)
        found.append(evaluate.evaluate(run, number, corpus, "eval")["map_at_r"])
    return found[0], found[1], found[3]


def test_banking77_end_to_end(tmp_path):
    untrained, _, trained = loop(tmp_path / "texts", f"csv:{DATA / 'banking77.csv'},label=category")
    assert trained > untrained


@pytest.mark.slow
def test_omniglot_end_to_end(tmp_path):
    with zipfile.ZipFile(DATA / "omniglot.zip") as file:
        file.extractall(tmp_path / "omniglot")
    untrained, _, trained = loop(tmp_path / "images", f"images:{tmp_path / 'omniglot'}")
    assert trained > untrained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "source", "least"),
    [("BANKING77", "csv:{}/*.csv,label=category", 0.35), ("OMNIGLOT", "images:{}", 0.5)],
)
def test_whole_data_sets_end_to_end(tmp_path, variable, source, least):
    """BANKING77 names the folder with train.csv and test.csv, OMNIGLOT that of the alphabets or its zip file."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} does not say where the whole data set is")
    place = os.environ[variable]
    if place.endswith(".zip"):
        shutil.unpack_archive(place, tmp_path / "unpacked")
        place = tmp_path / "unpacked"
    untrained, warm, trained = loop(tmp_path / "run", source.format(place))
    assert untrained < warm < trained and trained > least
