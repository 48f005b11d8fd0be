"""Embeddings written for others."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import copied
from corpora import examples
from handmade import write_corpus

from pipeline import embed
from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files.layout import Run
from trainer import init


def test_embeddings_come_with_their_ids_and_labels(small, tmp_path):
    """Against the embedder, split by split."""
    assert embed.main(["--run_dir", str(small), "--out", str(tmp_path / "e.npz")]) == 0
    corpus, path = Corpus.open(small), Run(small).round(0).checkpoint
    embedder = Embedder(load_network(path), corpus.feature)
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
        "out": str(out),
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
