"""Looking at what is on disk."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import copied, edit, packs_of

from pipeline import records
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.network import copy_checkpoint
from pipeline.errors import InputError
from pipeline.files import tfrecords
from pipeline.files.layout import Run


def shards_of(run_dir):
    return sorted(Run(run_dir).round(0).triplets.glob("*.tfrecord"))


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_verify_finds_what_is_wrong(small_mined, tmp_path, capsys):
    run_dir = copied(small_mined, tmp_path)
    assert records.main(["verify", str(run_dir)]) == 0
    assert capsys.readouterr().out == "everything as listed\n"
    shard = shards_of(run_dir)[0]
    flip(shard, 1000)
    shutil.copy(shard, shard.with_name("stranger.tfrecord"))
    (Run(run_dir).corpus / "eval-00000-of-00001.index.npy").unlink()
    assert records.main(["verify", str(run_dir)]) == 4
    said = capsys.readouterr().out
    assert "is not what" in said and "stranger.tfrecord is not listed" in said and "index.npy is missing" in said
    assert said.endswith("\n3 problems\n")


def test_verify_finds_checkpoints_and_embeddings_that_were_changed(small_mined, tmp_path, capsys):
    run = Run(copied(small_mined, tmp_path))
    checkpoint, embeddings = run.round(0).checkpoint, next(run.round(0).path.glob("embeddings/*/*.npy"))
    copy_checkpoint(checkpoint, run.best_checkpoint)
    assert records.main(["verify", str(run.path)]) == 0
    for path in (run.best_checkpoint, checkpoint, embeddings):
        flip(path, 1000)
    capsys.readouterr()
    assert records.main(["verify", str(run.path)]) == 4
    *found, last = capsys.readouterr().out.splitlines()
    assert last == "3 problems" and [line.partition(" was changed since it was written: ")[::2] for line in found] == [
        (str(path), f"{path.stem}.sha256 beside it is of another. Restore it, or make {path.parent} again.")
        for path in (run.best_checkpoint, checkpoint, embeddings)
    ]
    assert records.main(["verify", str(run.round(0).path)]) == 4
    assert capsys.readouterr().out.endswith("\n2 problems\n")
    for path in (run.best_checkpoint, checkpoint, embeddings):
        path.with_suffix(".sha256").unlink()
    assert records.main(["verify", str(run.path)]) == 0, "nothing tells what they were"


def test_verify_looks_at_a_part_of_a_run_directory_and_at_nothing_else(small_mined, tmp_path, capsys, monkeypatch):
    run_dir = copied(small_mined, tmp_path)
    for path in (run_dir / "corpus.json", run_dir / "data" / "corpus.json", run_dir / "a" / "b" / "triplets.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a user's own")
    assert records.main(["verify", str(run_dir)]) == 0
    flip(shards_of(run_dir)[0], 1000)
    monkeypatch.chdir(run_dir)
    for part, code in ((".", 4), ("rounds", 4), ("rounds/0000", 4), ("rounds/0000/triplets", 4), ("corpus", 0)):
        assert records.main(["verify", part]) == code, part
    for part in ("data", "rounds/0000/checkpoint"):
        with pytest.raises(InputError, match="no corpus.json or triplets.json in .*Name a run directory"):
            records.main(["verify", part])


def test_inspect_shows_the_first_records(small_mined, capsys):
    shard = shards_of(small_mined)[0]
    assert records.main(["inspect", str(shard), "--limit", "1"]) == 0
    said = capsys.readouterr().out
    for name in ("anchor", "d_ap", "float32", "image", "bytes"):
        assert name in said
    assert said.endswith("records, every checksum right; shown: 1\n")


def test_inspect_refuses_what_is_no_example_and_what_is_no_file(tmp_path):
    tfrecords.write_records(tmp_path / "a.tfrecord", [b"one"])
    with pytest.raises(InputError, match="a.tfrecord: record 0 is not a tf.train.Example"):
        records.main(["inspect", str(tmp_path / "a.tfrecord")])
    with pytest.raises(InputError, match="is not a file. Name a .tfrecord file"):
        records.main(["inspect", str(tmp_path)])


def test_a_changed_manifest_is_refused(small_run):
    path = Run(small_run).corpus_manifest
    path.write_text(path.read_text().replace('"grouped": false', '"grouped": true'))
    with pytest.raises(InputError, match="corpus.json was changed since it was written: its checksum does not fit"):
        Corpus.open(small_run)
    edit(path)
    with pytest.raises(InputError, match="changed by hand"):
        Corpus.open(small_run)


READER = """
import json, sys
from tfrecord.reader import tfrecord_loader
first = next(iter(tfrecord_loader(sys.argv[1], None)))
assert "tensorflow" not in sys.modules
print(json.dumps({name: np.asarray(first[name]).tolist() for name in ("anchor", "d_ap", "row", "kind", "scope")}))
"""


def test_a_reader_without_tensorflow_reads_our_files(small_mined):
    """`tfrecord` and TensorFlow register the same protobuf names, so it runs in a process of its own."""
    call = [sys.executable, "-c", f"import numpy as np{READER}", str(shards_of(small_mined)[0])]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = packs_of(small_mined)[0]
    for name, values in json.loads(done.stdout).items():
        np.testing.assert_array_equal(np.array(values, first[name].dtype), first[name])
