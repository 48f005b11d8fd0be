"""Embeddings written for others."""

import csv
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import command
from test_ingest import examples

from pipeline import embed, records
from pipeline.records import InputError


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_embeddings_come_with_their_ids_and_labels(digits, tmp_path, monkeypatch, suffix):
    """Against the embedder on all rows at once; cut into chunks the result is the same."""
    monkeypatch.setattr(embed, "CHUNK_ROWS", 500)
    out = tmp_path / f"e{suffix}"
    assert embed.main(["--run_dir", str(digits), "--out", str(out)]) == 0
    corpus = records.open_corpus(digits)
    embedder = embed.Embedder(records.checkpoint_path(digits, 0), corpus)
    splits = [corpus.split(name) for name in records.SPLITS]
    expected = np.concatenate([embedder(split.read(np.arange(split.rows))) for split in splits])
    columns = [
        (e["id"][0].decode(), e["label"][0].decode(), name) for name in records.SPLITS for e in examples(corpus, name)
    ]
    if suffix == ".npy":
        found = np.load(out)
        with open(out.with_suffix(".csv"), newline="", encoding="utf-8") as file:
            others = [(row["id"], row["label"], row["split"]) for row in csv.DictReader(file)]
    elif suffix == ".npz":
        arrays = np.load(out, allow_pickle=False)
        found = arrays["embeddings"]
        others = list(zip(*(arrays[name].tolist() for name in ("ids", "labels", "splits")), strict=True))
    else:
        table = pq.read_table(out)
        found = np.stack(table["embedding"].to_numpy())
        others = list(zip(*(table[name].to_pylist() for name in ("id", "label", "split")), strict=True))
    assert found.dtype == np.float32 and others == columns
    np.testing.assert_allclose(found, expected, atol=2**-10)  # batches cut elsewhere: a last bit may differ


def test_one_split_by_the_command(digits, tmp_path):
    done = command("pipeline.embed", "--run_dir", digits, "--out", tmp_path / "v.parquet", "--split", "validation")
    assert done.returncode == 0, done.stderr
    assert "179 embeddings of 64 numbers, validation" in done.stdout
    assert set(pq.read_table(tmp_path / "v.parquet")["split"].to_pylist()) == {"validation"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--out", "e.txt"], "e.txt: expected a name that ends in .npy"), (["--out", "e.npy", "--round", "9"], "missing")],
)
def test_wrong_calls_write_nothing(digits, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        embed.main(["--run_dir", str(digits), *arguments])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(20, 31), (32, 32), (105, 64)])
def test_images_are_resized_as_tensorflow_resizes_them(size, channels):
    tf = records.import_tensorflow()
    image = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    encoded = tf.constant([tf.io.encode_png(image).numpy()])
    expected = tf.image.resize(image.astype(np.float32), (32, 24), antialias=True)
    for shape in ([*size, channels], [None, None, channels]):
        found = embed.decode({"image": {"kind": "image", "shape": shape}}, encoded, (32, 24, channels))
        np.testing.assert_allclose(found[0], expected, atol=1e-3)


def test_threads_that_embed_draw_no_warning_of_retracing(digits, caplog, monkeypatch):
    """TensorFlow counts a trace for each call that is under way meanwhile, and warned from the second checkpoint on."""
    logger = records.import_tensorflow().get_logger()
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.WARNING)
    corpus = records.open_corpus(digits)
    serialised = corpus.split("train").read(np.arange(4 * embed.BATCH))
    for _ in range(4):
        embed.Embedder(records.checkpoint_path(digits, 0), corpus)(serialised)
    assert "retracing" not in caplog.text
