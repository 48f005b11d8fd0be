"""Run directories that are on no disk: fsspec's memory."""

import os
import time

import pytest
from conftest import copied

from pipeline import embed, ingest, mine, records
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Run
from pipeline.mining.manifest import open_triplets
from trainer import evaluate, init, train


def moved(run_dir):
    """A local run directory's files in memory."""
    to = storage.location(f"memory://remote-{os.getpid()}-{time.monotonic_ns()}/run")
    for path in run_dir.rglob("[!.]*"):
        if path.is_file():
            storage.write_atomically(
                to / path.relative_to(run_dir), lambda new, path=path: new.write_bytes(path.read_bytes())
            )
    return to


def digests(run_dir):
    """What a mined and trained round is told by: its triplets, and the next checkpoint."""
    round = Run(run_dir).round(0)
    triplets = open_triplets(round, Corpus.open(run_dir)).triplet_digest
    return triplets, load_network(round.next.checkpoint).digest()


def test_a_round_in_memory_gives_what_it_gives_on_a_disk(small, small_mined, tmp_path):
    local, run_dir = copied(small_mined, tmp_path), moved(small)
    assert train.main(["--run_dir", str(local)]) == 0
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    assert train.main(["--run_dir", str(run_dir)]) == 0
    assert digests(run_dir) == digests(local)
    assert evaluate.main(["--run_dir", str(run_dir), "--round", "0", "1"]) == 0
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    assert embed.main(["--run_dir", str(run_dir), "--out", str(run_dir / "e.parquet")]) == 0
    assert records.main(["verify", str(run_dir)]) == 0
    shard = open_triplets(Run(run_dir).round(0), Corpus.open(run_dir)).shards[0].file
    assert records.main(["inspect", str(Run(run_dir).round(0).triplets / shard)]) == 0
    assert not storage.names(Run(run_dir).round(0).path / "work")
    assert not [name for name in storage.names(run_dir) if name.startswith(".lock")]


def test_a_source_is_ingested_into_memory(small):
    """The same source twice: the second time there is nothing to do."""
    run_dir, source = f"memory://ingested-{os.getpid()}/run", Corpus.open(small).manifest.source
    for _ in range(2):
        assert ingest.main(["--run_dir", run_dir, "--source", source]) == 0
    place = storage.location(run_dir)
    assert Corpus.open(place).fingerprint == Corpus.open(small).fingerprint
    assert records.main(["verify", run_dir]) == 0 and not storage.names(Run(place).staging)


def test_one_bit_in_memory_is_refused(small):
    run_dir = moved(small)
    shard = Run(run_dir).corpus / Corpus.open(run_dir).split("train").shards[0].file
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(InputError, match="memory://.*is not what"):
        mine.main(["--run_dir", str(run_dir)])
    Run(run_dir).round(0).checkpoint.unlink()
    with pytest.raises(InputError, match="memory://.*is not what"):
        init.main(["--run_dir", str(run_dir)])
