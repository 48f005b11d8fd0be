"""TFRecords, their checks, and the `records` command."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import command, read_packs

from pipeline import records
from pipeline.records import InputError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.tfrecord"
    entry = records.write_records(path, [b"one", b"", b"three" * 100])
    assert entry["records"] == 3 and entry["bytes"] == path.stat().st_size
    return path


def test_records_read_back(file):
    lengths = [3, 0, 500]
    assert [len(record) for record in records.read_records(file)] == lengths
    offsets = records.offsets_of(lengths)
    assert records.read_records_at(file, offsets.tolist(), lengths)[2] == b"three" * 100


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("position", "message"),
    [(2, "record 0 .* length's checksum"), (13, "at byte 0 .* data's"), (-1, "at byte 35 .* data's")],
)
def test_a_flipped_bit_is_found(file, position, message):
    flip(file, position)
    with pytest.raises(InputError, match=message):
        list(records.read_records(file))


@pytest.mark.parametrize("cut", [1, 300, 515])
def test_a_cut_file_is_found(file, cut):
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(InputError, match="record 2 .*cut off"):
        list(records.read_records(file))


def test_a_huge_length_allocates_nothing(file):
    length = struct.pack("<Q", 2**60)
    file.write_bytes(length + struct.pack("<I", records._masked_crc(length)) + b"x")
    with pytest.raises(InputError, match="1152921504606846976 bytes announced"):
        list(records.read_records(file))


def test_a_failed_write_leaves_the_old_file(file):
    before = file.read_bytes()

    def broken():
        yield b"half"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        records.write_records(file, broken())
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_verify_finds_what_is_wrong(mined, tmp_path, capsys):
    run = shutil.copytree(mined, tmp_path / "run")
    assert records.main(["verify", str(run)]) == 0
    [shard] = (run / "rounds/0000/triplets").glob("*.tfrecord")
    flip(shard, 1000)
    shutil.copy(shard, shard.with_name("stranger.tfrecord"))
    (run / "corpus" / "eval-00000-of-00001.index.npy").unlink()
    assert records.main(["verify", str(run)]) == 4
    out = capsys.readouterr().out
    assert "is not what" in out and "stranger.tfrecord is not listed" in out and "index.npy is missing" in out


def test_inspect_shows_records(mined, capsys):
    [shard] = (mined / "rounds/0000/triplets").glob("*.tfrecord")
    assert records.main(["inspect", str(shard)]) == 0
    out = capsys.readouterr().out
    assert "anchor" in out and "d_ap" in out and "every checksum right" in out


def test_inspect_refuses_what_is_no_example(file):
    done = command("pipeline.records", "inspect", file)
    assert done.returncode == 4 and "record 0 is not a tf.train.Example" in done.stderr


def test_a_changed_manifest_is_refused(fresh_run):
    path = fresh_run / "corpus" / "corpus.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["labels"][0] = "other"
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="changed by hand"):
        records.open_corpus(fresh_run)
    path.write_text("{")
    with pytest.raises(InputError, match="not a manifest"):
        records.open_corpus(fresh_run)


def test_rows_are_read_in_the_order_asked_for(mined):
    split = records.open_corpus(mined).split("train")
    rows = np.array([700, 3, 3, 1257, 0])
    examples = [records.parse_example(record) for record in split.read(rows)]
    whole = [records.parse_example(record) for record in split.read(np.arange(split.rows))]
    assert [example["id"] for example in examples] == [whole[row]["id"] for row in rows]
    assert [example["label"][0].decode() for example in examples] == [split.labels[c] for c in split.class_of(rows)]


READER = """
import json, sys
from tfrecord.reader import tfrecord_loader
first = next(iter(tfrecord_loader(sys.argv[1], None)))
assert "tensorflow" not in sys.modules
print(json.dumps({name: len(first[name]) for name in ("anchor", "d_ap", "row", "kind", "scope")}))
"""


def test_a_reader_without_tensorflow_reads_our_files(mined):
    """`tfrecord` and TensorFlow register the same protobuf names, so it runs in a process of its own."""
    [shard] = (mined / "rounds/0000/triplets").glob("*.tfrecord")
    done = subprocess.run([sys.executable, "-c", READER, str(shard)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = read_packs(mined)[0]
    assert json.loads(done.stdout) == {name: len(first[name]) for name in ("anchor", "d_ap", "row", "kind", "scope")}


def test_tensorflow_is_imported_without_what_keras_needs_for_extras():
    code = (
        "import sys; from pipeline import records; records.import_tensorflow(); "
        "assert not {'sklearn', 'matplotlib'} & set(sys.modules); import sklearn; sklearn.__version__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
