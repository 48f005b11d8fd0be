"""Embeddings written for others."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import copied
from corpora import examples, png, read_source, write_csv
from fences import ROOT
from handmade import write_corpus
from networks import identity, vectorising
from PIL import Image

from pipeline import embed, ingest
from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import load_checkpoint
from pipeline.errors import InputError
from pipeline.files import tfrecords
from pipeline.files.layout import Run
from trainer import init


def test_embeddings_come_with_their_ids_and_labels(small, tmp_path):
    """Against the embedder, split by split."""
    assert embed.main(["--run_dir", str(small), "--out", str(tmp_path / "e.npz")]) == 0
    corpus, path = Corpus.open(small), Run(small).round(0).checkpoint
    embedder = Embedder(load_checkpoint(path), corpus.feature, path)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as found:
        expected = np.concatenate([embedder.split(corpus.split(name)) for name in SPLITS])
        np.testing.assert_array_equal(found["vectors"], expected)
        others = list(zip(*(found[name].tolist() for name in ("ids", "labels", "splits")), strict=True))
    assert others == [
        (example["id"][0].decode(), example["label"][0].decode(), name)
        for name in SPLITS
        for example in examples(corpus, name)
    ]


def test_one_split_of_one_round(small, tmp_path, capsys):
    run_dir = copied(small, tmp_path)
    newer = Run(run_dir).round(3).checkpoint
    newer.parent.mkdir(parents=True)
    newer.write_bytes(b"the newest, and no network")
    out = tmp_path / "new" / "v.parquet"
    call = ["--run_dir", str(run_dir), "--out", str(out), "--split", "validation", "--round", "0"]
    assert embed.main(call) == 0
    said = capsys.readouterr().out
    assert f"30 embeddings of 64 numbers, validation, with {Run(run_dir).round(0).checkpoint}\n  {out}\n" == said
    assert set(pq.read_table(out)["split"].to_pylist()) == {"validation"}
    assert embed.main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "rows": 30, "dim": 64, "splits": ["validation"], "checkpoint": str(Run(run_dir).round(0).checkpoint),
        "out": str(out), "source": None, "rejected": 0,
    }  # fmt: skip


def test_a_split_without_rows(tmp_path):
    write_corpus(tmp_path, ["a", "a", "b", "b"], np.eye(4, dtype=np.float32))
    assert init.main(["--run_dir", str(tmp_path), "--model", "networks:identity"]) == 0
    for suffix in ("npz", "parquet"):
        out = tmp_path / f"e.{suffix}"
        assert embed.main(["--run_dir", str(tmp_path), "--out", str(out), "--split", "eval"]) == 0
        assert out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "e.npy"], r"--out e.npy: expected a name that ends in .npz or .parquet"),
        (["--out", "e.npz", "--round", "9"], "0009/checkpoint/model.keras is missing"),
        (["--out", "e.npz", "--checkpoint", "m.keras"], "the rows of --run_dir, or those of one --split, or"),
        (["--out", "e.npz", "--source", "digits", "--split", "eval"], "the rows of --run_dir, or those of one --split"),
        (["--out", "e.npz", "--source", "csv:none.csv"], "none.csv: no such file"),
        (["--out", "e.npz", "--source", f"csv:{ROOT}/tests/data/banking77.csv"], "takes float32 .*; found text of"),
    ],
)
def test_wrong_calls_write_nothing(small, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        embed.main(["--run_dir", str(small), *arguments])
    assert not list(tmp_path.iterdir())


def test_a_damaged_corpus_is_not_embedded(small_run, tmp_path):
    [shard] = Run(small_run).corpus.glob("eval-*.tfrecord")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="eval-.* is not what"):
        embed.main(["--run_dir", str(small_run), "--out", str(tmp_path / "e.npz")])
    assert not (tmp_path / "e.npz").exists()


# ---- Rows of a source, which is not ingested. ----


def embedded(tmp_path, source, *arguments):
    """Vectors by id; reasons by place."""
    out = tmp_path / "e.npz"
    assert embed.main(["--source", str(source), "--out", str(out), *map(str, arguments)]) == 0
    with np.load(out, allow_pickle=False) as found:
        vectors = dict(zip(found["ids"].tolist(), found["vectors"], strict=True))
    reasons = out.with_name("e.npz.rejected.jsonl")
    lines = reasons.read_text().splitlines() if reasons.exists() else []
    return vectors, {entry["source"]: entry["reason"] for entry in map(json.loads, lines)}


def test_a_source_is_embedded_as_its_corpus_is(small, tmp_path):
    """Bit for bit."""
    before = sorted(path.name for path in small.rglob("*"))
    found, rejected = embedded(tmp_path, Corpus.open(small).manifest.source, "--run_dir", small)
    assert embed.main(["--run_dir", str(small), "--out", str(tmp_path / "corpus.npz")]) == 0
    with np.load(tmp_path / "corpus.npz", allow_pickle=False) as expected:
        assert sorted(found) == sorted(expected["ids"]) and not rejected
        np.testing.assert_array_equal([found[id] for id in expected["ids"].tolist()], expected["vectors"])
    assert sorted(path.name for path in small.rglob("*")) == before


def vectors_without_labels(folder, kind):
    """The name of a source: two vectors, one of another length, one with NaN; only the first has a label, or none."""
    rows = [[1.0, 0.0], [0.0, 1.0], [1.0, 2.0, 3.0], [float("nan"), 1.0]]
    if kind == "csv":
        write_csv(folder / "t.csv", [["vector"], *([str(row)] for row in rows)])
    elif kind == "jsonl":
        lines = [json.dumps({"vector": row} | ({"label": "a"} if row[0] == row[-1] + 1 else {})) for row in rows]
        (folder / "t.jsonl").write_text("\n".join(lines))
    elif kind in ("parquet", "sql"):
        pq.write_table(pa.table({"vector": rows, "label": ["a", None, None, ""]}), folder / "t.parquet")
        (folder / "t.sql").write_text(f"SELECT vector, label FROM '{folder / 't.parquet'}'")
    else:
        records = [tfrecords.make_example({"vector": np.array(row, np.float32)}) for row in rows]
        tfrecords.write_records(folder / "t.tfrecord", records)
    return f"{kind}:{folder / 't'}.{kind}"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "sql", "tfrecord"])
def test_labels_are_not_needed_and_bad_rows_are_named(tmp_path, capsys, kind):
    network = tmp_path / "m.keras"
    identity((2,)).save(network)
    source = vectors_without_labels(tmp_path, kind)
    found, rejected = embedded(tmp_path, source, "--checkpoint", network)
    first, second, third, fourth = (f"t.{kind}:{number:07d}" for number in range(4))
    assert {id: vector.tolist() for id, vector in found.items()} == {first: [1, 0], second: [0, 1]}
    assert rejected == {
        third: "vector of 3 numbers, the network takes 2", fourth: "the vector holds NaN or infinity",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert f"2 embeddings of 2 numbers, {source}, with {network}\n" in said
    assert "  4 rows read: 2 embedded, 2 rejected, with reasons in " in said
    with pytest.raises(InputError, match="Say which of them is the label|rejected"):
        ingest.main(["--run_dir", str(tmp_path / "run"), "--source", source])


def test_what_is_written_can_be_read_again(tmp_path):
    """With labels where there are, without where there are none; and the reasons of the call before are gone."""
    network, out = tmp_path / "m.keras", tmp_path / "e.npz"
    identity((2,)).save(network)
    embedded(tmp_path, vectors_without_labels(tmp_path, "parquet"), "--checkpoint", network)
    first, second = read_source(f"arrays:{out}")
    assert (first.id, first.label, first.payload.tolist()) == ("t.parquet:0000000", "a", [1, 0])
    assert str(second) == "row 1: it has no label"
    np.savez(tmp_path / "v.npz", vectors=np.eye(2), ids=["x", "y"])
    assert embedded(tmp_path, f"arrays:{tmp_path / 'v.npz'}", "--checkpoint", network)[1] == {}
    parquet = tmp_path / "e.parquet"
    call = ["--source", f"arrays:{out}", "--out", str(parquet), "--checkpoint", str(network)]
    assert embed.main(call) == 0
    assert pq.read_table(parquet).to_pydict() == {
        "id": ["x", "y"], "label": [None, None], "split": [None, None], "embedding": [[1, 0], [0, 1]],
    }  # fmt: skip


def test_texts_of_a_source(tmp_path, capsys):
    vectorising((), ["one", "two"]).save(tmp_path / "m.keras")
    write_csv(tmp_path / "t.csv", [["id", "text"], ["a", "one two"], ["b", ""], ["c", "x" * 50], ["d", "two"]])
    source, network = f"csv:{tmp_path / 't.csv'}", ("--checkpoint", tmp_path / "m.keras")
    found, rejected = embedded(tmp_path, source, *network, "--max_text", 49)
    assert sorted(found) == ["a", "d"]
    assert rejected == {"t.csv:0000001": "the text is empty", "c": "the text has 50 characters, --max_text is 49"}
    write_csv(tmp_path / "t.csv", [["text"], [""], [" "]])
    with pytest.raises(InputError, match="holds no row to embed; t.csv:0000000: the text is empty"):
        embedded(tmp_path, source, *network)


def test_images_of_a_source(small, tmp_path):
    """Of any size, in class folders or in none; what is no image is named."""
    folder = tmp_path / "new"
    (folder / "class").mkdir(parents=True)
    for name, size in {"a.png": (8, 8), "b.png": (20, 11), "class/c.png": (8, 8)}.items():
        (folder / name).write_bytes(png(100, size))
    (folder / "notes.txt").write_text("no image")
    found, rejected = embedded(tmp_path, f"images:{folder}", "--run_dir", small)
    assert sorted(found) == ["a.png", "b.png", "class/c.png"]
    np.testing.assert_array_equal(found["a.png"], found["class/c.png"])
    assert rejected == {"notes.txt": "no image that Pillow reads"}


def test_16_bits_become_8_by_the_factor_of_the_corpus(tmp_path):
    """Also those that are brighter than any there; without a corpus nothing says which is white."""
    for name, white in {"c/0": 0xFFF, "c/1": 0x7FF, "c/2": 0xFFF, "d/0": 0x3FF, "d/1": 0xFFF, "d/2": 0}.items():
        path = tmp_path / "old" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.linspace(0, white, 64).reshape(8, 8).astype(np.uint16)).save(path)
    run_dir, old = tmp_path / "run", tmp_path / "old"
    assert ingest.main(["--run_dir", str(run_dir), "--source", f"images:{old}"]) == 0
    assert init.main(["--run_dir", str(run_dir)]) == 0
    assert embed.main(["--run_dir", str(run_dir), "--out", str(tmp_path / "corpus.npz")]) == 0
    bright = tmp_path / "new" / "bright.png"
    Image.fromarray(np.full((8, 8), 0xFFFF, np.uint16)).save(bright.parent.mkdir() or bright)
    Image.fromarray(np.full((8, 8), 0xFFF, np.uint16)).save(bright.with_name("white.png"))
    found, _ = embedded(tmp_path, f"images:{old}", "--run_dir", run_dir)
    with np.load(tmp_path / "corpus.npz", allow_pickle=False) as expected:
        np.testing.assert_array_equal([found[id] for id in expected["ids"].tolist()], expected["vectors"])
    found, _ = embedded(tmp_path, f"images:{bright.parent}", "--run_dir", run_dir)
    np.testing.assert_array_equal(found["bright.png"], found["white.png"])
    with pytest.raises(InputError, match="bright.png: 16 bits a pixel, and no corpus"):
        embedded(tmp_path, f"images:{bright.parent}", "--checkpoint", Run(run_dir).round(0).checkpoint)
