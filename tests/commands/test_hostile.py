"""Run directories that somebody damaged on purpose, or that may only be read: what commands do with them."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from conftest import copied, edit

from pipeline import embed, ingest, mine, records, report
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Run
from trainer import evaluate, init, train, triplet_dataset

NAMES = ["../a.tfrecord", "{outside}/a.tfrecord", "../../outside/a", "..", ".", "", "a/b.tfrecord", "./a", "a\0b"]
HOSTILE = [
    *(("corpus/corpus.json", "file", name) for name in NAMES[:7]),
    *(("corpus/corpus.json", "index", name) for name in NAMES[:4]),
    *(("corpus/corpus.json", of, name) for of in ("given_triplets", "labels", "first_rows") for name in NAMES[:3]),
    *(("rounds/0000/triplets/triplets.json", "file", name) for name in NAMES),
]


def everything_below(folder):
    found = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    return {path: content for path, content in found.items() if not path.name.startswith(".lock-")}


def spoil(manifest, field, name):
    """Gives the last shard that a manifest lists another name."""
    told = json.loads(manifest.read_text())
    if field == "given_triplets":
        edit(manifest, given_triplets={"file": name, "records": 1, "bytes": 1, "sha256": "0"})
        return
    if field in ("labels", "first_rows"):
        told["splits"]["train"][field]["file"] = name
    else:
        shards = told["shards"] if "shards" in told else told["splits"]["train"]["shards"]
        shards[-1][field] = name
    edit(manifest, **told)


def commands(run_dir, out):
    """Every command that reads a run directory."""
    run = ["--run_dir", str(run_dir)]
    yield ingest, [*run, "--source", "digits"]
    yield from ((command, run) for command in (init, mine, train, evaluate, report))
    yield embed, [*run, "--out", str(out / "e.npz")]
    yield records, ["verify", str(run_dir)]
    yield records, ["export", str(run_dir), "--to", str(out / "t.jsonl")]


@pytest.mark.parametrize(("manifest", "field", "name"), HOSTILE)
def test_no_manifest_leads_out_of_its_folder(small_mined, tmp_path, manifest, field, name):
    name = name.format(outside=tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.tfrecord").write_bytes(b"somebody's")
    run_dir, refused = copied(small_mined, tmp_path), 0
    spoil(run_dir / manifest, field, name)
    (tmp_path / "out").mkdir()
    before = everything_below(tmp_path)
    for command, arguments in commands(run_dir, tmp_path / "out"):
        if manifest.startswith("rounds") and command in (ingest, init, evaluate, embed):  # they do not read it
            continue
        with pytest.raises(InputError, match=f"{Path(manifest).name}: .* is not the name of a file in"):
            command.main(arguments)
        refused += 1
    assert everything_below(tmp_path) == before and refused >= 5
    if manifest.startswith("corpus"):
        shutil.rmtree(run_dir / "rounds/0000/triplets")
        with pytest.raises(InputError, match="is not the name of a file in"):
            mine.main(["--run_dir", str(run_dir)])


@pytest.mark.parametrize("length", [2**45, 2**63, 10**4])
def test_a_shard_that_announces_more_than_it_has_is_refused_though_its_manifest_fits(small_mined, tmp_path, length):
    run_dir = copied(small_mined, tmp_path)
    round = Run(run_dir).round(0)
    [shard] = round.triplets.glob("*.tfrecord")
    data = shard.read_bytes()
    length = min(length, 2**63) if length != 10**4 else len(data)
    header = struct.pack("<Q", length)
    crc = google_crc32c.value(header)
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF  # as TFRecords have it
    shard.write_bytes(header + struct.pack("<I", masked) + data[12:])
    [entry] = json.loads(round.manifest.read_text())["shards"]
    edit(round.manifest, shards=[entry | {"sha256": storage.sha256_of(shard)}])
    for command, arguments in ((train.main, ["--run_dir", str(run_dir)]), (triplet_dataset, run_dir)):
        with pytest.raises(InputError, match=f"record 0 at byte 0 is cut off: {length} bytes announced"):
            command(arguments)


def test_embeddings_of_another_shape_are_made_again(small, tmp_path):
    run_dir = copied(small, tmp_path)
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    before = Run(run_dir).round(0).manifest.read_bytes()
    [path] = (run_dir / "rounds/0000/embeddings").rglob("*.npy")
    storage.write_checked(path, lambda temporary: np.save(temporary, np.zeros((3, 64), np.float32)))
    shutil.rmtree(Run(run_dir).round(0).triplets)
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    assert Run(run_dir).round(0).manifest.read_bytes() == before


READ_ONLY = """
import sys
from pathlib import Path
from pipeline import embed, ingest, mine, report, rounds
from pipeline.errors import InputError
from trainer import evaluate, init, train, warmup

run, out = ["--run_dir", sys.argv[1]], sys.argv[2]
for command in (mine, report, rounds, evaluate, init, train, warmup):
    try:
        command.main(run)
    except InputError as error:
        print(command.__name__, error.exit_code, error)
assert embed.main([*run, "--out", out]) == 0
"""


def as_one_who_obeys_modes():
    """What to put before a command: root may write everywhere, but for the right that this takes away."""
    if os.getuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("modes say nothing to root, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override"]


def test_a_run_directory_that_may_only_be_read(small_mined, tmp_path):
    run_dir, out = copied(small_mined, tmp_path), tmp_path / "e.npz"
    for path in (run_dir, *run_dir.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        done = subprocess.run(
            [*as_one_who_obeys_modes(), sys.executable, "-c", READ_ONLY, str(run_dir), str(out)], capture_output=True,
            text=True,
        )  # fmt: skip
    finally:
        for path in (run_dir, *run_dir.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if " is read-only" in line]
    names = "mine report rounds evaluate init train warmup".split()
    assert [line.split()[0].rpartition(".")[2] for line in said] == names
    refused = f" 4 {run_dir} is read-only for this user. Make it writable, or copy the run directory to where you may"
    assert all(refused in line for line in said)
    assert out.exists() and {*everything_below(run_dir).values()} == {*everything_below(small_mined).values()}
